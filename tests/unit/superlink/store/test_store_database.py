"""The database: grouped writes, failures that stay alone, migrations, and what is left after kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError
from trellis_superlink.store.database import Database, Tx
from trellis_superlink.store.errors import TryAgainLater, Unusable
from trellis_superlink.store.files import Files
from trellis_superlink.store.lock import take
from trellis_superlink.store.migrate import newest
from trellis_superlink.store.signals import Signals
from trellis_superlink.store.tables import metadata


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "d.db", Signals())
    yield database
    await database.close()


def put(number: int, fail: Exception | None = None):  # type: ignore[no-untyped-def]
    def fn(tx: Tx) -> int:
        tx.conn.execute(text("INSERT INTO beats VALUES (:n, 0)"), {"n": number})
        if fail is not None:
            raise fail
        return number

    return fn


async def numbers(db: Database) -> list[int]:
    return await db.read(lambda conn: list(conn.scalars(text("SELECT id FROM beats ORDER BY id"))))


async def test_the_migrations_make_the_tables(tmp_path: Path, db: Database) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'd.db'}")
    found = inspect(engine)
    assert set(found.get_table_names()) == {*metadata.tables, "alembic_version"}
    for table in metadata.sorted_tables:
        assert {c["name"] for c in found.get_columns(table.name)} == {c.name for c in table.columns}
        assert {i["name"] for i in found.get_indexes(table.name)} == {i.name for i in table.indexes}
    assert await db.read(lambda conn: conn.scalar(text("SELECT version_num FROM alembic_version"))) == newest()
    assert await db.read(lambda conn: conn.scalar(text("PRAGMA journal_mode"))) == "wal"
    assert await db.read(lambda conn: conn.scalar(text("PRAGMA synchronous"))) == 2


async def test_grouped_writes_fail_alone(db: Database) -> None:
    outcomes = await asyncio.gather(
        *(db.write(put(n, ValueError("no") if n % 3 == 0 else None)) for n in range(1, 31)),
        db.write(put(1)),
        return_exceptions=True,
    )
    assert [isinstance(each, ValueError) for each in outcomes[:30]] == [n % 3 == 0 for n in range(1, 31)]
    assert isinstance(outcomes[30], IntegrityError)
    assert await numbers(db) == [n for n in range(1, 31) if n % 3]


async def test_signals_come_after_the_commit_and_only_then(tmp_path: Path) -> None:
    signals = Signals()
    db = await Database.open(tmp_path / "d.db", signals)
    events: list[str] = []

    def fn(tx: Tx) -> None:
        tx.signal("topic")
        tx.afterwards(lambda: events.append("after"))
        put(1)(tx)

    with signals.listen("topic") as listener:
        assert not await listener.wait(0)
        await db.write(fn)
        assert await listener.wait(0)
        with pytest.raises(IntegrityError):
            await db.write(fn)
        assert not await listener.wait(0.01)
    assert events == ["after"]
    await db.close()
    with pytest.raises(TryAgainLater):
        await db.write(fn)


async def test_a_locked_database_is_try_again_later(
    tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.write(lambda tx: tx.conn.exec_driver_sql("PRAGMA busy_timeout=20").close())
    other = sqlite3.connect(tmp_path / "d.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    outcomes = await asyncio.gather(*(db.write(put(n)) for n in range(3)), return_exceptions=True)
    assert all(isinstance(each, TryAgainLater) for each in outcomes), outcomes
    assert await numbers(db) == []
    other.execute("ROLLBACK")
    other.close()
    await db.write(put(7))
    assert await numbers(db) == [7]


async def test_a_file_taken_away_takes_nothing_until_it_is_back(tmp_path: Path, db: Database) -> None:
    path, away = tmp_path / "d.db", tmp_path / "away"
    await db.write(put(1))
    path.rename(away)
    for _ in range(2):
        with pytest.raises(TryAgainLater, match="deleted, moved or replaced"):
            await db.write(put(2))
    path.write_bytes(b"")  # another file in its place is none of ours
    with pytest.raises(TryAgainLater):
        await db.write(put(2))
    away.rename(path)
    await db.write(put(3))
    assert await numbers(db) == [1, 3]


@pytest.mark.parametrize("content", [b"no database" * 200, b"SQLite format 3\x00" + b"torn" * 300])
async def test_another_kind_of_file_is_unusable_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.db"
    path.write_bytes(content)
    with pytest.raises(Unusable, match="is no database of Trellis"):
        await Database.open(path, Signals())
    assert path.read_bytes() == content


def test_one_process_has_the_database(tmp_path: Path) -> None:
    with take(tmp_path / "d.db"), pytest.raises(Unusable, match="another SuperLink"):
        take(tmp_path / "d.db")
    take(tmp_path / "d.db").close()


async def test_a_full_database_is_try_again_later(db: Database) -> None:
    pages = await db.read(lambda conn: conn.scalar(text("PRAGMA page_count")))
    await db.write(lambda tx: tx.conn.exec_driver_sql(f"PRAGMA max_page_count={pages}").close())

    def big(tx: Tx) -> None:
        tx.conn.execute(text("INSERT INTO fabs VALUES ('a', zeroblob(1000000))"))

    outcomes = await asyncio.gather(db.write(put(1)), db.write(big), db.write(put(2)), return_exceptions=True)
    assert outcomes[0] == 1
    assert isinstance(outcomes[1], TryAgainLater)
    assert outcomes[2] == 2
    assert await numbers(db) == [1, 2]


WRITER = """
import asyncio, sys
from pathlib import Path
from sqlalchemy import text
from trellis_superlink.store.database import Database
from trellis_superlink.store.signals import Signals

async def main():
    db = await Database.open(Path(sys.argv[1]), Signals())
    async def one(n):
        await db.write(lambda tx: tx.conn.execute(text("INSERT INTO beats VALUES (:n, 0)"), {"n": n}).close())
        print(n, flush=True)
    n = 0
    while True:
        await asyncio.gather(*(one(n + i) for i in range(5)))
        n += 5

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(tmp_path / "d.db"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged = [int(await process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    rest = await process.stdout.read()
    acknowledged += [int(line) for line in rest.split(b"\n")[:-1]]
    await process.wait()
    db = await Database.open(tmp_path / "d.db", Signals())
    assert set(acknowledged) <= set(await numbers(db))
    await db.close()


def test_files_are_written_once_and_swept(tmp_path: Path) -> None:
    files = Files(tmp_path / "objects")
    kept, lost, given_up = (files.begin("ab" * 32) for _ in range(3))
    for each in (kept, lost, given_up):
        each.write(memoryview(b"12345"))
    kept.settle()
    lost.settle()
    given_up.discard()
    assert len({kept.location, lost.location}) == 2
    assert files.sweep({kept.location}) == 1
    assert bytes(asyncio.run(files.read(kept.location, 1, 3))) == b"234"
    asyncio.run(files.delete([kept.location, "ab/gone"]))
    with pytest.raises(FileNotFoundError):
        asyncio.run(files.read(kept.location, 0, 1))
