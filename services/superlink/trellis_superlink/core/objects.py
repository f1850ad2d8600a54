"""The content-addressed objects that messages are made of: taking them in, handing them out.

A caller sees an object only as part of a message it may see: a node the instructions delivered to it and not yet
answered, an executor the replies of its run not yet confirmed and the state it gave its run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update
from trellis_wire.messages import decode_message_object
from trellis_wire.objects import ObjectError, ObjectHead, PartVerifier, parse_head
from trellis_wire.objects import object_id as hash_of

from trellis_superlink.core import access, trees
from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import BadObject, NotFound
from trellis_superlink.core.ledger import Ledger
from trellis_superlink.core.letters import (
    COMPLETE,
    INSTRUCTION,
    Letters,
    MailState,
    error_of,
    metadata_of,
    run_going_on,
)
from trellis_superlink.core.parcels import INLINE_OBJECT
from trellis_superlink.core.principals import Kind, Principal
from trellis_superlink.core.quotas import Quotas
from trellis_superlink.core.treecache import TreeCache
from trellis_superlink.store.database import Tx
from trellis_superlink.store.errors import TryAgainLater, passing
from trellis_superlink.store.files import Incoming
from trellis_superlink.store.tables import contexts, messages, objects

PART = 1024 * 1024
"""Bytes handed out at a time."""

MAX_OBJECT = 1 << 31
"""Bytes of one object at most; gRPC carries no larger message."""


@dataclass(frozen=True)
class Found:
    """What is known of an object that the caller may see. `available` False: named by a message, content not here."""

    object_id: str
    size: int
    available: bool


@dataclass(frozen=True)
class Part:
    object_id: str
    offset: int
    size: int  # of the whole object
    data: memoryview | bytes


class Objects:
    def __init__(self, ground: Ground, letters: Letters, cache: TreeCache, ledger: Ledger, quotas: Quotas) -> None:
        self._ground = ground
        self.quotas = quotas
        self._letters = letters
        self._cache = cache
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="objects")

    def close(self) -> None:
        self._threads.shutdown()

    # ---- taking in

    async def store(self, who: Principal, run_id: int, object_id: str, content: bytes | memoryview) -> bool:
        """One whole object (stock's PushObject). False when no message names it or the hash differs (WIRE.md 2.3);
        BadObject when malformed; RunOver; True once durable, also when it was here already."""
        state = await self.expected(who, run_id, object_id)
        if state != "missing":
            return state == "here"
        return await self._ground.to_the_end(self._store(who, run_id, object_id, content))

    async def _store(self, who: Principal, run_id: int, object_id: str, content: bytes | memoryview) -> bool:
        head = await self.in_thread(_head_if_intact, object_id, content)
        if head is None:
            return False
        self.count_received(who, run_id, len(content))
        if len(content) <= INLINE_OBJECT:
            return await self.settle(object_id, head, content=bytes(content), file=None)
        file = await self.in_thread(self.open_file, object_id)
        try:
            await self.in_thread(file.write, content)
        except BaseException:
            await self.in_thread(file.discard)
            raise
        return await self.settle(object_id, head, content=None, file=file)

    def receive(self, who: Principal, run_id: int) -> Receiver:
        """Takes objects in parts; see `Receiver`."""
        return Receiver(self, who, run_id)

    async def expected(self, who: Principal, run_id: int, object_id: str) -> str:
        """Is this object "missing", "here" or "unknown"? RunOver, NotFound for a run that the caller does not see."""

        def look(conn: Connection) -> str:
            access.run_for(conn, who, run_id)
            run_going_on(conn, run_id)
            row = conn.execute(select(objects.c.size).where(objects.c.object_id == object_id)).first()
            if row is None:
                return "unknown"
            return "missing" if row.size is None else "here"

        return await self._ground.db.read(look)

    async def in_thread(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Runs blocking work on bytes or files; TryAgainLater where the disk does not allow it now. A thread cannot be
        stopped: when the caller is cancelled, it learns so once the work is through, and what was worked on is its own
        again."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, fn, *args)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise
        except OSError as error:
            if passing(error):
                raise TryAgainLater(str(error)) from error
            raise

    def open_file(self, object_id: str) -> Incoming:
        return self._ground.files.begin(object_id)

    def count_received(self, who: Principal, run_id: int, size: int) -> None:
        if who.kind is Kind.NODE:
            self._ledger.received(run_id, size)

    async def settle(self, object_id: str, head: ObjectHead, *, content: bytes | None, file: Incoming | None) -> bool:
        """Makes a verified object count: its file first, then its row. False when nobody wants it any more. Goes on to
        its end when the caller is cancelled, as only then it is known whether the file is to stay."""
        return await self._ground.to_the_end(self._settle(object_id, head, content, file))

    async def _settle(self, object_id: str, head: ObjectHead, content: bytes | None, file: Incoming | None) -> bool:
        size = head.head_length + head.body_length

        def put(tx: Tx) -> str:
            row = tx.conn.execute(
                select(objects.c.children, objects.c.size).where(objects.c.object_id == object_id)
            ).first()
            if row is None:
                return "unknown"
            if row.size is not None:
                return "here"
            if trees.split(row.children) != head.children:
                raise BadObject(f"Object {object_id[:16]}... has other children than its tree says.")
            if head.type_name == "Message" and content is not None:
                _check_message(tx.conn, object_id, content)
            tx.conn.execute(
                update(objects)
                .where(objects.c.object_id == object_id)
                .values(size=size, content=content, location=None if file is None else file.location)
            )
            self._letters.completed(tx, trees.arrive(tx, [object_id]))
            return "stored"

        outcome = "failed"
        try:
            if file is not None:
                await self.in_thread(file.settle)
            outcome = await self._ground.db.write(put)
        finally:
            if file is not None and outcome != "stored":
                await self._discard_unless_named(object_id, file)
        return outcome != "unknown"

    async def _discard_unless_named(self, object_id: str, file: Incoming) -> None:
        try:
            named = await self._ground.db.read(
                lambda conn: conn.scalar(select(objects.c.location).where(objects.c.object_id == object_id))
            )
        except TryAgainLater:
            return  # the next start sweeps it
        if named != file.location:
            await self.in_thread(file.discard)

    # ---- handing out

    async def find(self, who: Principal, run_id: int, object_id: str) -> Found | None:
        """None when no message that the caller may see has this object. RunOver."""
        rows = await self._ground.db.read(lambda conn: self._visible(conn, who, run_id, [object_id]))
        row = rows.get(object_id)
        return None if row is None else Found(object_id, row.size or 0, row.size is not None)

    async def read(self, who: Principal, run_id: int, object_id: str) -> bytes:
        """A whole object (stock's PullObject answers are unary). NotFound also while its content is not here."""
        rows = await self._ground.db.read(lambda conn: self._visible(conn, who, run_id, [object_id]))
        row = rows.get(object_id)
        if row is None or row.size is None:
            raise NotFound(f"Object {object_id[:16]}... is not here.")
        self._count_sent(who, run_id, row.size)
        if row.content is not None:
            return bytes(row.content)
        return bytes(await self._range(object_id, row.location, 0, row.size))

    async def stream(self, who: Principal, run_id: int, object_ids: Sequence[str]) -> AsyncIterator[Part]:
        """The objects one after the other in parts of 1 MiB, never a whole object in memory. NotFound."""
        for batch in trees.batches(dict.fromkeys(object_ids), 200):
            rows = await self._ground.db.read(lambda conn, ids=batch: self._visible(conn, who, run_id, ids))  # type: ignore[misc]
            for object_id in batch:
                row = rows.get(object_id)
                if row is None or row.size is None:
                    raise NotFound(f"Object {object_id[:16]}... is not here.")
                self._count_sent(who, run_id, row.size)
                if row.content is not None:
                    yield Part(object_id, 0, row.size, row.content)
                    continue
                for offset in range(0, row.size, PART):
                    data = await self._range(object_id, row.location, offset, min(PART, row.size - offset))
                    yield Part(object_id, offset, row.size, data)

    def _count_sent(self, who: Principal, run_id: int, size: int) -> None:
        if who.kind is Kind.NODE:
            self._ledger.sent(run_id, size)

    async def _range(self, object_id: str, location: str, start: int, length: int) -> memoryview:
        try:
            return await self._ground.files.read(location, start, length)
        except FileNotFoundError as error:
            raise NotFound(f"Object {object_id[:16]}... is not here any more.") from error

    def _visible(self, conn: Connection, who: Principal, run_id: int, ids: Sequence[str]) -> dict[str, Any]:
        allowed = self._allowed(conn, who, run_id, ids)
        return {
            row.object_id: row
            for batch in trees.batches(allowed)
            for row in conn.execute(
                select(
                    objects.c.object_id,
                    objects.c.size,
                    objects.c.location,
                    objects.c.content,
                ).where(objects.c.object_id.in_(batch))
            )
        }

    def _allowed(self, conn: Connection, who: Principal, run_id: int, ids: Sequence[str]) -> set[str]:
        wanted = set(ids)
        allowed: set[str] = set()
        roots = select(messages.c.message_id, messages.c.content_id).where(
            messages.c.run_id == run_id, messages.c.state == MailState.OPEN, COMPLETE
        )
        if who.kind is Kind.NODE:
            run_going_on(conn, run_id)
            roots = roots.where(messages.c.dst_node_id == who.node_id, INSTRUCTION, messages.c.deliveries > 0)
        elif who.run != run_id:
            return set()
        else:
            run_going_on(conn, run_id)
            roots = roots.where(messages.c.reply_to.is_not(None))
            root = conn.scalar(select(contexts.c.root_id).where(contexts.c.run_id == run_id))
            if root is not None and not trees.waiting(conn, [root]):
                allowed |= wanted & self._cache.get(conn, root).ids
        for row in conn.execute(roots):
            if wanted <= allowed:
                break
            if row.message_id in wanted:
                allowed.add(row.message_id)
            if row.content_id is not None:
                allowed |= wanted & self._cache.get(conn, row.content_id).ids
        return allowed


class Receiver:
    """Takes the objects of one stream in parts as they arrive; the syncing of one overlaps with receiving the next."""

    _AHEAD = 2  # objects being made durable while the next one arrives

    def __init__(self, objects_: Objects, who: Principal, run_id: int) -> None:
        self._objects = objects_
        self._who = who
        self._run_id = run_id
        self._current: _Arriving | None = None
        self._settling: list[asyncio.Task[str | None]] = []
        self._stored: list[str] = []

    async def part(self, object_id: str, offset: int, size: int, data: bytes | memoryview) -> None:
        """The parts of an object in order without gaps. BadObject, TryAgainLater, RunOver."""
        current = self._current or await self._start(object_id, size)
        if (object_id, offset, size) != (current.object_id, current.received, current.size):
            raise BadObject(f"Parts of object {object_id[:16]}... do not follow each other.")
        current.received += len(data)
        if current.verifier is not None:
            try:
                await self._objects.in_thread(current.feed, data)
            except ObjectError as error:
                raise BadObject(str(error)) from error
        if current.received >= current.size:
            self._current = None
            while len(self._settling) >= self._AHEAD:
                await self._harvest()
            self._settling.append(asyncio.create_task(self._settle(current)))

    async def finish(self) -> list[str]:
        """Waits until everything taken is durable; the ids stored. BadObject when an object is incomplete."""
        if self._current is not None:
            raise BadObject(f"Object {self._current.object_id[:16]}... is incomplete.")
        while self._settling:
            await self._harvest()
        return self._stored

    async def abort(self) -> None:
        """The stream is over, for whatever reason: what is incomplete is forgotten. Always call it; after `finish` it
        does nothing."""
        current, self._current = self._current, None
        settling, self._settling = self._settling, []
        if current is not None:
            self._arrived(current)
        if current is not None and current.file is not None:
            await self._objects.in_thread(current.file.discard)
        if settling:
            await asyncio.wait(settling)
            for task in settling:
                task.exception()  # looked at: the stream's own error is the one that counts

    async def _start(self, object_id: str, size: int) -> _Arriving:
        if not 0 < size <= MAX_OBJECT:
            raise BadObject(f"Object {object_id[:16]}... cannot have {size} bytes.")
        state = await self._objects.expected(self._who, self._run_id, object_id)
        self._current = arriving = _Arriving(object_id, size, state)
        if state == "missing":
            if self._who.kind is Kind.EXECUTOR:
                await self._objects.quotas.take(self._who, size)
                arriving.taken = size
            arriving.verifier = PartVerifier(object_id, size)
            if size > INLINE_OBJECT:
                await self._objects.in_thread(arriving.open, self._objects.open_file)
        return arriving

    async def _harvest(self) -> None:
        stored = await self._settling[0]
        self._settling.pop(0)
        if stored is not None:
            self._stored.append(stored)

    def _arrived(self, arriving: _Arriving) -> None:
        taken, arriving.taken = arriving.taken, 0
        self._objects.quotas.arrived(self._who, taken)

    async def _settle(self, arriving: _Arriving) -> str | None:
        try:
            return await self._settle_and_count(arriving)
        finally:
            self._arrived(arriving)

    async def _settle_and_count(self, arriving: _Arriving) -> str | None:
        self._objects.count_received(self._who, self._run_id, arriving.size)
        if arriving.verifier is None:
            # Here already: fine. Named by nobody any more: an executor's message was answered meanwhile (its node went
            # away), so nothing is missing; a node is told so, as on stock.
            return arriving.object_id if arriving.state == "here" or self._who.run_id is not None else None
        try:
            head = arriving.verifier.finish()
        except ObjectError as error:
            if arriving.file is not None:
                await self._objects.in_thread(arriving.file.discard)
            raise BadObject(str(error)) from error
        content = bytes(arriving.memory) if arriving.file is None else None
        wanted = await self._objects.settle(arriving.object_id, head, content=content, file=arriving.file)
        return arriving.object_id if wanted or self._who.run_id is not None else None


class _Arriving:
    """An object on its way: in memory when small, else in its file."""

    def __init__(self, object_id: str, size: int, state: str) -> None:
        self.object_id = object_id
        self.size = size
        self.state = state
        self.received = 0
        self.taken = 0  # of the account's quota, until it is here
        self.verifier: PartVerifier | None = None
        self.file: Incoming | None = None
        self.memory = bytearray()

    def open(self, begin: Callable[[str], Incoming]) -> None:
        self.file = begin(self.object_id)

    def feed(self, data: bytes | memoryview) -> None:
        assert self.verifier is not None
        self.verifier.feed(data)
        if self.file is None:
            self.memory += data
        else:
            self.file.write(data)


def _head_if_intact(object_id: str, content: bytes | memoryview) -> ObjectHead | None:
    """None when the content has another hash; BadObject when it is malformed."""
    if hash_of(content) != object_id:
        return None
    try:
        return parse_head(content, len(content))
    except ObjectError as error:
        raise BadObject(str(error)) from error


def _check_message(conn: Connection, message_id: str, content: bytes) -> None:
    """A message's own object says what its row was told."""
    row = conn.execute(select(messages).where(messages.c.message_id == message_id)).first()
    if row is None:
        return
    try:
        metadata, error, content_id = decode_message_object(content)
    except ObjectError as problem:
        raise BadObject(str(problem)) from problem
    if (metadata, error, content_id) != (metadata_of(row), error_of(row), row.content_id):
        raise BadObject("The message's metadata is not what its own object says.")
