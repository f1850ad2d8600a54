"""Composes the core: one `Core` per SuperLink process."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, func, insert, select

from trellis_superlink.core.artifacts import Artifacts
from trellis_superlink.core.base import Ground
from trellis_superlink.core.claims import Claims
from trellis_superlink.core.deadlines import Deadlines
from trellis_superlink.core.executors import Executors
from trellis_superlink.core.federations import Federations
from trellis_superlink.core.ledger import Ledger
from trellis_superlink.core.letters import INSTRUCTION, Letters, MailState
from trellis_superlink.core.logs import Logs
from trellis_superlink.core.mail import Mail
from trellis_superlink.core.nodes import Nodes, Unknown
from trellis_superlink.core.objects import Objects
from trellis_superlink.core.quotas import Limits, Quotas
from trellis_superlink.core.retention import Retention
from trellis_superlink.core.runs import Runs, Status
from trellis_superlink.core.treecache import TreeCache
from trellis_superlink.store.database import Database, Tx
from trellis_superlink.store.errors import TryAgainLater, Unusable
from trellis_superlink.store.files import Files
from trellis_superlink.store.lock import take
from trellis_superlink.store.signals import Signals
from trellis_superlink.store.tables import artifacts, keys, messages, objects, runs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CoreConfig:
    """What an operator decides about the core; times in seconds.

    `database` None keeps everything in temporary files that go away with the process. `storage_dir` None puts the
    objects' files beside the database. `retention`: how long finished runs are kept, None for ever.
    `artifact_limit`: bytes of what a run leaves behind; `limits`: what each account may have. `unknown_nodes`: what
    becomes of nodes that no operator registered. `executor_hint` ends the notice that pending runs get when no executor
    shows up.
    """

    database: Path | None = None
    storage_dir: Path | None = None
    retention: float | None = None
    unknown_nodes: Unknown = Unknown.ADMIT
    artifact_limit: int = 4 * 1024**3
    limits: Limits = field(default_factory=Limits)
    executor_lost_after: float = 30.0
    executor_absent_after: float = 10.0
    executor_hint: str = "Start one: flwr-serverapp --serverappio-api-address <this SuperLink>:9091"


@dataclass(frozen=True)
class Counts:
    """What /metrics shows of the core."""

    runs: Mapping[Status, int]
    nodes_known: int
    nodes_online: int
    executors: int
    instructions_open: int
    replies_waiting: int
    objects: int
    object_bytes: int
    held_calls: int


class Core:
    """`core = await Core.open(config)`; then `core.runs`, `.nodes`, `.mail`, `.objects`, `.logs`, `.executors`,
    `.artifacts`, `.federations`; at the end `await core.close()`."""

    def __init__(self, ground: Ground, config: CoreConfig, temporary: Path | None, lock: BinaryIO) -> None:
        self._ground = ground
        self._temporary = temporary
        self.places = (*ground.db.files, ground.files.root)  # what it keeps lies there
        self._lock = lock
        cache = TreeCache()
        self._letters = Letters(ground, cache)
        self._claims = Claims(ground)
        self._ledger = Ledger(ground)
        self.logs = Logs(ground)
        self.federations = Federations(ground)
        quotas = Quotas(ground, config.limits)
        self.runs = Runs(ground, self._letters, self._claims, self.federations, quotas)
        self.nodes = Nodes(ground, self._letters.node_gone, self.federations, unknown=config.unknown_nodes)
        self.objects = Objects(ground, self._letters, cache, self._ledger, quotas)
        self.mail = Mail(ground, self._letters, cache, self.nodes, self._ledger, quotas)
        self.executors = Executors(
            ground,
            self.runs,
            self._claims,
            self.logs,
            lost_after=config.executor_lost_after,
            absent_after=config.executor_absent_after,
            hint=config.executor_hint,
        )
        self.artifacts = Artifacts(ground, self.objects, config.artifact_limit)
        self._retention = (
            None
            if config.retention is None
            else Retention(ground, self.runs, self._letters, self.nodes, self._claims, config.retention)
        )

    @classmethod
    async def open(cls, config: CoreConfig, *, clock: Callable[[], float] = time.time) -> Core:
        """Opens storage, brings it to the newest layout, and picks up where the last process stopped. TryAgainLater
        when the database is locked or the disk does not allow it, Unusable when only the operator can mend it."""
        temporary = Path(tempfile.mkdtemp(prefix="trellis-superlink-")) if config.database is None else None
        database = config.database if temporary is None else temporary / "superlink.db"
        assert database is not None
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            lock = take(database)
            files = Files(config.storage_dir or database.with_name(database.name + ".objects"))
        except OSError as error:
            raise Unusable(f"{error.filename}: {error.strerror}") from error
        signals = Signals()
        try:
            db = await Database.open(database, signals)
            try:
                await asyncio.to_thread(files.sweep, await db.read(_locations))
                core = cls(Ground(db, files, signals, Deadlines(clock), clock), config, temporary, lock)
                await core._load()
            except BaseException:
                await db.close()
                raise
        except BaseException:
            lock.close()
            raise
        return core

    async def _load(self) -> None:
        await self.federations.load()
        await self.nodes.load()
        await self._letters.expire()
        await self._letters.collect()
        await self.executors.load()
        if self._retention is not None:
            await self._retention.load()

    async def close(self) -> None:
        """Stops all that is under way in the core and brings everything to the disk. Waiting calls are to be ended by
        the edges before."""
        await self.executors.close()
        await self._ground.deadlines.close()
        for flush in (self.nodes.write_beats, self._ledger.flush, self._letters.collect):
            try:
                await flush()
            except TryAgainLater as error:
                _log.warning("could not write at the end", extra={"error": str(error)})
        await self._ground.settle()
        await self._ground.db.close()
        self.objects.close()
        self._lock.close()
        if self._temporary is not None:
            await asyncio.to_thread(shutil.rmtree, self._temporary, ignore_errors=True)

    async def collect(self) -> int:
        """Frees at once what is done with, rather than a moment later; how many messages."""
        return await self._letters.collect()

    async def problem(self) -> str | None:
        """Why this SuperLink is not ready (database locked, disk full), or None. For /readyz."""
        try:
            await self._ground.db.write(_touch)
        except TryAgainLater as error:
            return f"storage: {error}"
        return None

    async def key(self, name: str) -> bytes:
        """32 random bytes that stay the same for this database."""

        def find_or_make(tx: Tx) -> bytes:
            found: bytes | None = tx.conn.scalar(select(keys.c.value).where(keys.c.name == name))
            if found is None:
                found = secrets.token_bytes(32)
                tx.conn.execute(insert(keys).values(name=name, value=found))
            return found

        return await self._ground.db.write(find_or_make)

    async def counts(self) -> Counts:
        """For /metrics; one short read."""
        by_status, open_, waiting, count, size = await self._ground.db.read(_count)
        return Counts(
            runs={status: by_status.get(status, 0) for status in Status},
            nodes_known=self.nodes.known_count,
            nodes_online=self.nodes.online_count,
            executors=len(self.executors.attending()),
            instructions_open=open_,
            replies_waiting=waiting,
            objects=count,
            object_bytes=size,
            held_calls=self.mail.held,
        )


def _touch(tx: Tx) -> None:
    """A write that changes nothing and yet takes the lock and reaches the log."""
    tx.conn.exec_driver_sql("UPDATE beats SET at = at")


def _locations(conn: Connection) -> set[str]:
    named = set(conn.scalars(select(objects.c.location).where(objects.c.location.is_not(None))))
    return named | set(conn.scalars(select(artifacts.c.location)))


def _count(conn: Connection) -> tuple[dict[str, int], int, int, int, int]:
    by_status = {row[0]: row[1] for row in conn.execute(select(runs.c.status, func.count()).group_by(runs.c.status))}
    is_open = messages.c.state == MailState.OPEN
    instructions = conn.scalar(select(func.count()).select_from(messages).where(is_open, INSTRUCTION)) or 0
    replies = conn.scalar(select(func.count()).select_from(messages).where(is_open, messages.c.reply_to.is_not(None)))
    count, size = conn.execute(select(func.count(objects.c.size), func.coalesce(func.sum(objects.c.size), 0))).one()
    return by_status, instructions, replies or 0, count, size
