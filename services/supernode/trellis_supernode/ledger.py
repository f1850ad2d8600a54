"""What the SuperNode must not forget, in one SQLite file: runs with their contexts, tasks, replies, small objects.

Each public call is one transaction, run in the order of the calls by one thread of its own; what was awaited is on the
disk. Trees are kept as serialized `flwr.proto.ObjectTree`, run ids as text (SQLite's integers are signed).
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LOCK_SECONDS = 2.0
"""How long a predecessor on the same state directory may take to end."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, info BLOB NOT NULL, problem TEXT, state BLOB);
CREATE TABLE IF NOT EXISTS tasks (
  message_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, message BLOB NOT NULL, tree BLOB NOT NULL,
  received REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS replies (
  message_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, instruction_id TEXT NOT NULL, message BLOB NOT NULL,
  tree BLOB NOT NULL, runtime REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS objects (
  run_id TEXT NOT NULL, object_id TEXT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (run_id, object_id)
);
"""


@dataclass(frozen=True)
class RunRow:
    """A run this node works for. `info` is a serialized RunInfo; `problem` says why its FAB cannot be run."""

    run_id: int
    info: bytes
    problem: str | None
    state: bytes | None = None


@dataclass(frozen=True)
class TaskRow:
    """An accepted instruction that has no reply yet. `message` is the edge Message without its content."""

    message_id: str
    run_id: int
    message: bytes
    tree: bytes
    received: float
    attempts: int = 0


@dataclass(frozen=True)
class ReplyRow:
    """A reply that the SuperLink does not have yet. `runtime` in seconds."""

    message_id: str
    run_id: int
    instruction_id: str
    message: bytes
    tree: bytes
    runtime: float


@dataclass(frozen=True)
class Kept:
    """Everything the ledger held when it was opened."""

    runs: list[RunRow]
    tasks: list[TaskRow]
    replies: list[ReplyRow]
    objects: dict[int, dict[str, bytes]]  # the small ones, by run and id


class Ledger:
    """The SuperNode's durable memory. Open it, use it from one event loop, close it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> Kept:
        """Open or create the file; sqlite3.Error when it is no ledger or another process uses it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def close(self) -> None:
        """After everything that was queued."""
        connection = self._connection
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown()

    def _open(self) -> Kept:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=LOCK_SECONDS)
        # Two SuperNodes on one state directory would be one node twice: the second must not start.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(_SCHEMA)
        self._connection = db
        objects: dict[int, dict[str, bytes]] = {}
        for run_id, object_id, content in db.execute("SELECT run_id, object_id, content FROM objects"):
            objects.setdefault(int(run_id), {})[object_id] = content
        return Kept(
            [RunRow(int(row[0]), *row[1:]) for row in db.execute("SELECT run_id, info, problem, state FROM runs")],
            [
                TaskRow(row[0], int(row[1]), *row[2:])
                for row in db.execute(
                    "SELECT message_id, run_id, message, tree, received, attempts FROM tasks ORDER BY received"
                )
            ],
            [
                ReplyRow(row[0], int(row[1]), *row[2:])
                for row in db.execute("SELECT message_id, run_id, instruction_id, message, tree, runtime FROM replies")
            ],
            objects,
        )

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """Queue one transaction; it is queued when this returns, and done when the future is."""

        def transaction() -> T:
            db = self._connection
            if db is None:
                raise RuntimeError("the ledger is not open")
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return result

        return asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    # ---- what is kept --------------------------------------------------------------------------------------

    def get(self, key: str, make: Callable[[], bytes]) -> "asyncio.Future[bytes]":
        """A value kept under this key; made and kept now if there is none."""

        def work(db: sqlite3.Connection) -> bytes:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            if row is not None:
                return bytes(row[0])
            value = make()
            db.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
            return value

        return self._run(work)

    def keep_run(self, run: RunRow) -> "asyncio.Future[None]":
        """A run that this node works for; its state stays as it is."""
        values = (str(run.run_id), run.info, run.problem)
        statement = (
            "INSERT INTO runs (run_id, info, problem) VALUES (?, ?, ?) "
            "ON CONFLICT (run_id) DO UPDATE SET info = excluded.info, problem = excluded.problem"
        )
        return self._run(lambda db: _done(db.execute(statement, values)))

    def keep_task(self, task: TaskRow, objects: Mapping[str, bytes]) -> "asyncio.Future[None]":
        """An accepted instruction with its small objects."""

        def work(db: sqlite3.Connection) -> None:
            _keep_objects(db, task.run_id, objects)
            db.execute(
                "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?)",
                (task.message_id, str(task.run_id), task.message, task.tree, task.received, task.attempts),
            )

        return self._run(work)

    def keep_objects(self, run_id: int, objects: Mapping[str, bytes]) -> "asyncio.Future[None]":
        """Small objects that came after their instruction."""
        return self._run(lambda db: _keep_objects(db, run_id, objects))

    def count_attempt(self, message_id: str, attempts: int) -> "asyncio.Future[None]":
        statement = "UPDATE tasks SET attempts = ? WHERE message_id = ?"
        return self._run(lambda db: _done(db.execute(statement, (attempts, message_id))))

    def keep_reply(self, reply: ReplyRow, objects: Mapping[str, bytes], state: bytes | None) -> "asyncio.Future[None]":
        """A task's reply, and the run's new state (None: unchanged), in place of the task."""

        def work(db: sqlite3.Connection) -> None:
            run_id = str(reply.run_id)
            _keep_objects(db, reply.run_id, objects)
            db.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)",
                (reply.message_id, run_id, reply.instruction_id, reply.message, reply.tree, reply.runtime),
            )
            db.execute("DELETE FROM tasks WHERE message_id = ?", (reply.instruction_id,))
            if state is not None:
                db.execute("UPDATE runs SET state = ? WHERE run_id = ?", (state, run_id))

        return self._run(work)

    def forget_reply(self, message_id: str) -> "asyncio.Future[None]":
        return self._run(lambda db: _done(db.execute("DELETE FROM replies WHERE message_id = ?", (message_id,))))

    def forget_task(self, message_id: str) -> "asyncio.Future[None]":
        return self._run(lambda db: _done(db.execute("DELETE FROM tasks WHERE message_id = ?", (message_id,))))

    def forget_objects(self, run_id: int, object_ids: Iterable[str]) -> "asyncio.Future[None]":
        rows = [(str(run_id), object_id) for object_id in object_ids]
        statement = "DELETE FROM objects WHERE run_id = ? AND object_id = ?"
        return self._run(lambda db: _done(db.executemany(statement, rows)))

    def forget_run(self, run_id: int) -> "asyncio.Future[None]":
        """Everything of a run."""

        def work(db: sqlite3.Connection) -> None:
            for table in ("objects", "replies", "tasks", "runs"):
                db.execute(f"DELETE FROM {table} WHERE run_id = ?", (str(run_id),))

        return self._run(work)


def _done(_: object) -> None:
    """A statement whose result nobody needs."""


def _keep_objects(db: sqlite3.Connection, run_id: int, objects: Mapping[str, bytes]) -> None:
    rows = [(str(run_id), object_id, content) for object_id, content in objects.items()]
    db.executemany("INSERT OR IGNORE INTO objects VALUES (?, ?, ?)", rows)
