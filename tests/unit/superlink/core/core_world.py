"""What the tests of the core share: a core on real files, an app, messages, and a clock that can be put forward."""

from __future__ import annotations

import asyncio
import functools
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import create_engine, func, select
from trellis_superlink.core.executors import Attendance, Hello, Work
from trellis_superlink.core.parcels import Parcel
from trellis_superlink.core.principals import NO_ACCOUNT, SYSTEM, Principal
from trellis_superlink.core.runs import Run
from trellis_superlink.core.service import Core, CoreConfig
from trellis_superlink.store.migrate import migrate
from trellis_superlink.store.tables import awaited, objects
from trellis_wire.fab import build
from trellis_wire.identity import generate_key, public_pem
from trellis_wire.messages import MessageError, Metadata
from trellis_wire.objects import Tree
from trellis_wire.records import Array, ArrayRecord, ConfigRecord, MetricRecord, Record, deflate_message

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "small"
version = "1.2.3"
description = ""
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "small:server"
clientapp = "small:client"

[tool.flwr.app.config]
rounds = 3
"""


def make_fab(folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "small.py").write_text("server = client = None\n")
    return build(folder)


@dataclass
class Clock:
    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def array(size: int, fill: bytes = b"x") -> Array:
    return Array("uint8", (size,), fill * size)


def records(size: int = 100, fill: bytes = b"x", **metrics: float) -> dict[str, Record]:
    return {
        "arrays": ArrayRecord({"w": array(size, fill)}),
        "config": ConfigRecord({"round": 1}),
        "metrics": MetricRecord(dict(metrics)),
    }


@dataclass
class Letter:
    """A message with all its contents."""

    parcel: Parcel
    contents: dict[str, bytes]

    @property
    def id(self) -> str:
        return self.parcel.tree.object_id

    @property
    def meta(self) -> Metadata:
        return self.parcel.metadata

    def bare(self) -> Parcel:
        return Parcel(self.meta, self.parcel.tree, self.parcel.error)

    def full(self) -> Parcel:
        return Parcel(self.meta, self.parcel.tree, self.parcel.error, self.contents)


def letter(
    metadata: Metadata, content: Mapping[str, Record] | None, error: MessageError | None = None, chunk: int = 1 << 20
) -> Letter:
    bundle = deflate_message(metadata, content, error, chunk_size=chunk)
    contents = {object_id: bytes(source.content()) for object_id, source in bundle.objects.items()}
    values = {**metadata.__dict__, "message_id": bundle.tree.object_id}
    return Letter(Parcel(Metadata(**values), bundle.tree, error), contents)


def instruct(
    run_id: int,
    node_id: int,
    content: Mapping[str, Record],
    *,
    ttl: float = 3600.0,
    at: float | None = None,
    group: str = "1",
) -> Letter:
    created = time.time() if at is None else at
    return letter(Metadata(run_id, "", 1, node_id, "", group, ttl, "train", created), content)


def answer(to: Metadata, content: Mapping[str, Record] | None, *, at: float | None = None, **changes: object) -> Letter:
    created = time.time() if at is None else at
    values: dict[str, object] = {
        "run_id": to.run_id,
        "message_id": "",
        "src_node_id": to.dst_node_id,
        "dst_node_id": 1,
        "reply_to_message_id": to.message_id,
        "group_id": to.group_id,
        "ttl": to.expires_at - created,
        "message_type": to.message_type,
        "created_at": created,
    }
    error = changes.pop("error", None)
    assert error is None or isinstance(error, MessageError)
    return letter(Metadata(**(values | changes)), content, error)  # type: ignore[arg-type]


@dataclass
class World:
    core: Core
    fab: bytes
    clock: Clock
    config: CoreConfig
    keys: dict[int, bytes] = field(default_factory=dict)

    async def node(self) -> Principal:
        key = public_pem(generate_key())
        await self.core.nodes.register(key)
        node_id = await self.core.nodes.activate(key, 30.0)
        self.keys[node_id] = key
        return await self.core.nodes.authenticate(node_id, key)

    async def attend(self, executor_id: str = "e1", slots: int = 4, holding: Iterable[str] = ()) -> Attendance:
        hello = Hello(executor_id, slots, holding=tuple(holding))
        return await self.core.executors.attend(Principal.executor(executor_id), hello)

    async def submit(self) -> Run:
        return await self.core.runs.start(NO_ACCOUNT, self.fab, override_config={})

    async def running(self) -> tuple[Principal, Work, Attendance]:
        """A run under way: the principal of its executor."""
        stay = await self.attend()
        run = await self.submit()
        work = await anext(stay.orders())
        assert isinstance(work, Work)
        assert work.run.run_id == run.run_id
        who = await self.core.runs.authenticate(work.token)
        await self.core.runs.running(who)
        return who, work, stay

    async def push(self, who: Principal, letters: Iterable[Letter]) -> None:
        pushed = await self.core.mail.push_instructions(who, [each.full() for each in letters])
        assert not any(pushed.refusals), pushed.refusals
        assert pushed.missing == []

    async def pull(self, node: Principal, **more: object) -> list[Parcel]:
        return await self.core.mail.wait_for_instructions(node, timeout=0.0, **more)  # type: ignore[arg-type]

    def forward(self, seconds: float) -> None:
        self.clock.ahead += seconds
        self.core._ground.deadlines._fire()

    async def rest(self) -> None:
        """What is due now has happened, and what is done with is freed."""
        while self.core._ground.deadlines._tasks:
            await asyncio.wait(self.core._ground.deadlines._tasks.copy())
            await asyncio.sleep(0)
        await self.core.collect()
        await self.core._ground.settle()

    async def stored(self) -> tuple[int, int]:
        """Rows of objects, and of what is awaited."""
        return await self.core._ground.db.read(
            lambda conn: (
                conn.scalar(select(func.count()).select_from(objects)) or 0,
                conn.scalar(select(func.count()).select_from(awaited)) or 0,
            )
        )

    def files(self) -> list[Path]:
        root = self.core._ground.files.root
        return sorted(path for path in root.rglob("*") if path.is_file())

    async def details(self, run_id: int) -> Run:
        return await self.core.runs.get(SYSTEM, run_id)

    async def reopen(self) -> None:
        """As after an orderly restart."""
        await self.core.close()
        self.core = await Core.open(self.config, clock=self.clock)


@functools.cache
def empty_database() -> bytes:
    """A database with the newest layout: Alembic runs once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        engine = create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
        migrate(engine)
        engine.dispose()
        return path.read_bytes()


@functools.cache
def the_fab() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return make_fab(Path(folder) / "app")


@asynccontextmanager
async def world(folder: Path, **config: object) -> AsyncIterator[World]:
    clock = Clock()
    if not (folder / "superlink.db").exists():
        (folder / "superlink.db").write_bytes(empty_database())
    settings = CoreConfig(database=folder / "superlink.db", **config)  # type: ignore[arg-type]
    core = await Core.open(settings, clock=clock)
    here = World(core, the_fab(), clock, settings)
    try:
        yield here
    finally:
        await here.core.close()


def ids(tree: Tree) -> set[str]:
    return set(tree.post_order())
