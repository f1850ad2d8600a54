"""The rows of messages, and what happens to them inside a transaction: becoming complete, being answered, expiring."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, delete, func, insert, or_, select, update
from trellis_wire.messages import ErrorCode, MessageError, Metadata, error_reply_to
from trellis_wire.objects import Tree

from trellis_superlink.core import metrics, trees
from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import NotFound, RunOver
from trellis_superlink.core.parcels import Parcel
from trellis_superlink.core.treecache import Content, TreeCache
from trellis_superlink.store.database import Tx
from trellis_superlink.store.signals import node_topic, replies_topic
from trellis_superlink.store.tables import messages, objects, runs

Row = Any  # a row of `messages`

COLLECT_DELAY = 0.2
"""Seconds from the end of a message to the freeing of its objects: many at once, off the way of a round."""


class MailState(IntEnum):
    """OPEN: an instruction without answer, a reply not yet confirmed. DONE: its objects are to be freed; FREED: are."""

    OPEN = 0
    DONE = 1
    FREED = 2


INSTRUCTION = messages.c.reply_to.is_(None)
COMPLETE = messages.c.arrival.is_not(None)


_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_STATUS = select(runs.c.status, runs.c.outcome, runs.c.details).where(runs.c.run_id == bindparam("run"))
_UNREADY = select(messages).where(
    messages.c.arrival.is_(None),
    messages.c.state == int(MailState.OPEN),
    or_(messages.c.message_id.in_(_IDS), messages.c.content_id.in_(_IDS)),
)
_READY = (
    update(messages)
    .where(messages.c.message_id == bindparam("id"))
    .values(arrival=bindparam("number"), size=bindparam("bytes"))
)
_DONE = (
    update(messages)
    .where(messages.c.message_id.in_(_IDS), messages.c.state == int(MailState.OPEN))
    .values(state=int(MailState.DONE))
)
_TO_FREE = select(messages.c.message_id).where(messages.c.state == int(MailState.DONE))
_FREED = update(messages).where(messages.c.state == int(MailState.DONE)).values(state=int(MailState.FREED))
_LAST_ARRIVAL = select(func.max(messages.c.arrival)).where(messages.c.run_id == bindparam("run"))
_RUNTIME = (
    update(runs)
    .where(runs.c.run_id == bindparam("run"))
    .values(clientapp_runtime=runs.c.clientapp_runtime + bindparam("seconds"))
)


def run_going_on(conn: Connection, run_id: int) -> None:
    """NotFound for an unknown run, RunOver for a finished one."""
    row = conn.execute(_STATUS, {"run": run_id}).first()
    if row is None:
        raise NotFound("Run ID not found")
    if row.status == "finished":
        raise RunOver(f"Run is finished: {row.outcome}. {row.details}".strip())


def metadata_of(row: Row) -> Metadata:
    return Metadata(
        run_id=row.run_id,
        message_id=row.message_id,
        src_node_id=row.src_node_id,
        dst_node_id=row.dst_node_id,
        reply_to_message_id=row.reply_to or "",
        group_id=row.group_id,
        ttl=row.ttl,
        message_type=row.message_type,
        created_at=row.created_at,
        src_task_id=row.src_task_id,
        dst_task_id=row.dst_task_id,
    )


def error_of(row: Row) -> MessageError | None:
    return None if row.error_code is None else MessageError(row.error_code, row.error_reason or "")


def values_of(parcel: Parcel, now: float, **more: object) -> dict[str, object]:
    """The columns of a new message; `more` overrides."""
    meta = parcel.metadata
    return {
        "message_id": meta.message_id,
        "run_id": meta.run_id,
        "src_node_id": meta.src_node_id,
        "dst_node_id": meta.dst_node_id,
        "reply_to": meta.reply_to_message_id or None,
        "group_id": meta.group_id,
        "ttl": meta.ttl,
        "message_type": meta.message_type,
        "created_at": meta.created_at,
        "src_task_id": meta.src_task_id,
        "dst_task_id": meta.dst_task_id,
        "error_code": None if parcel.error is None else parcel.error.code,
        "error_reason": None if parcel.error is None else parcel.error.reason,
        "content_id": parcel.tree.children[0].object_id if parcel.tree.children else None,
        "state": MailState.OPEN,
        "arrival": None,
        "deliveries": 0,
        "pushed_at": now,
        "expires_at": meta.expires_at,
        "size": 0,
        "runtime": None,
    } | more


def tops_of(row: Row) -> list[str]:
    """The ids under which the message awaits its objects."""
    return [row.message_id] if row.content_id is None else [row.message_id, row.content_id]


class Letters:
    """Methods that take a `Tx` run in the database's writer thread."""

    def __init__(self, ground: Ground, cache: TreeCache) -> None:
        self._ground = ground
        self._cache = cache

    # ---- completeness

    def completed(self, tx: Tx, tops: Sequence[str]) -> None:
        """These tops await nothing any more: the messages that are complete by that become deliverable."""
        rows: dict[str, Row] = {}
        for batch in trees.batches(tops):
            for row in tx.conn.execute(_UNREADY, {"ids": batch}):
                rows[row.message_id] = row
        still = trees.waiting(tx.conn, [top for row in rows.values() for top in tops_of(row)]) if rows else set()
        for row in rows.values():
            if not still.intersection(tops_of(row)):
                content = None if row.content_id is None else self._cache.get(tx.conn, row.content_id)
                size = content.size if content else 0
                number = 0 if row.reply_to is None else self.next_arrival(tx, row.run_id)
                tx.conn.execute(_READY, {"id": row.message_id, "number": number, "bytes": size})
                self.ready(tx, row, content)

    def ready(self, tx: Tx, row: Row, content: Content | None) -> None:
        """A message has become deliverable (its row says so): who waits for it is told, and a reply answers its
        instruction."""
        if row.reply_to is None:
            tx.signal(node_topic(row.dst_node_id))
            return
        self.done(tx, [row.reply_to])
        if row.runtime:
            tx.conn.execute(_RUNTIME, {"run": row.run_id, "seconds": row.runtime})
        if content is not None:
            metrics.keep(tx, row, Tree(row.message_id, (content.tree,)), self._ground.clock())
        tx.signal(replies_topic(row.run_id))

    def next_arrival(self, tx: Tx, run_id: int) -> int:
        """The number of the next reply of a run."""
        last: int | None = tx.conn.scalar(_LAST_ARRIVAL, {"run": run_id})
        return (last or 0) + 1

    # ---- ends

    def done(self, tx: Tx, message_ids: Sequence[str]) -> None:
        """Nobody needs these messages' objects any more; they are freed a little later."""
        for batch in trees.batches(message_ids):
            tx.conn.execute(_DONE, {"ids": batch})
        tx.afterwards(self.collect_soon)

    def run_over(self, tx: Tx, run_id: int) -> None:
        """The run is over: all its messages are done with."""
        tx.conn.execute(
            update(messages)
            .where(messages.c.run_id == run_id, messages.c.state == MailState.OPEN)
            .values(state=MailState.DONE)
        )
        tx.afterwards(self.collect_soon)
        tx.signal(replies_topic(run_id))

    def collect_soon(self) -> None:
        self._ground.deadlines.earlier("mail/collect", self._ground.clock() + COLLECT_DELAY, self.collect)

    async def collect(self) -> int:
        """Frees the objects of all messages that are done; how many messages."""
        return await self._ground.db.write(self._collect)

    def _collect(self, tx: Tx) -> int:
        ids = list(tx.conn.scalars(_TO_FREE))
        if ids:
            self.let_go(tx, ids)
            tx.conn.execute(_FREED)
        return len(ids)

    def let_go(self, tx: Tx, roots: Sequence[str]) -> None:
        """Takes one reference from each of these roots."""
        locations = trees.release(tx, roots)
        if locations:
            tx.afterwards(lambda: self._ground.discard(locations))

    def drop(self, tx: Tx, message_id: str) -> None:
        """Takes back a message that never became complete."""
        self.let_go(tx, [message_id])
        tx.conn.execute(delete(messages).where(messages.c.message_id == message_id))

    # ---- what the SuperLink answers itself

    def answer_with_error(self, tx: Tx, instruction: Row, code: ErrorCode, reason: str) -> bool:
        """Answers an instruction in the node's place, unless it was answered: the first reply wins. An incomplete
        reply gives way."""
        reply = tx.conn.execute(
            select(messages.c.message_id, messages.c.arrival).where(messages.c.reply_to == instruction.message_id)
        ).first()
        if reply is not None:
            if reply.arrival is not None:
                return False
            self.drop(tx, reply.message_id)
        self._insert_error(tx, metadata_of(instruction), code, reason)
        self.done(tx, [instruction.message_id])
        return True

    def replace_with_error(self, tx: Tx, reply: Row, instruction: Row, code: ErrorCode, reason: str) -> None:
        """A complete reply that came too late for its receiver gives way to an error."""
        self.drop(tx, reply.message_id)
        self._insert_error(tx, metadata_of(instruction), code, reason)

    def _insert_error(self, tx: Tx, instruction: Metadata, code: ErrorCode, reason: str) -> None:
        now = self._ground.clock()
        error = MessageError(int(code), reason)
        metadata, content = error_reply_to(instruction, error, now=now)
        parcel = Parcel(metadata, Tree(metadata.message_id), error)
        tx.conn.execute(
            insert(objects).values(
                object_id=metadata.message_id, children="", refs=1, size=len(content), content=content
            )
        )
        arrival = self.next_arrival(tx, metadata.run_id)
        tx.conn.execute(insert(messages).values(values_of(parcel, now, arrival=arrival)))
        tx.signal(replies_topic(metadata.run_id))

    def node_gone(self, tx: Tx, node_ids: Sequence[int], reason: str) -> int:
        """What these nodes still had to do is answered with error 5; how much that was."""
        count = 0
        for batch in trees.batches(node_ids):
            for row in tx.conn.execute(
                select(messages).where(
                    messages.c.dst_node_id.in_(batch), messages.c.state == MailState.OPEN, INSTRUCTION
                )
            ).all():
                count += self.answer_with_error(tx, row, ErrorCode.NODE_UNAVAILABLE, reason)
        return count

    # ---- expiry

    def watch_expiry(self, at: float) -> None:
        self._ground.deadlines.earlier("mail/expiry", at, self.expire)

    async def expire(self) -> None:
        """Answers with error 3 what has outlived its ttl, and waits for the next to do so."""
        following = await self._ground.db.write(self._expire)
        if following is not None:
            self.watch_expiry(following)

    def _expire(self, tx: Tx) -> float | None:
        waiting = select(messages).where(messages.c.state == MailState.OPEN, INSTRUCTION)
        for row in tx.conn.execute(waiting.where(messages.c.expires_at <= self._ground.clock())).all():
            self.answer_with_error(
                tx, row, ErrorCode.MESSAGE_UNAVAILABLE, "The instruction expired before it was answered."
            )
        following: float | None = tx.conn.scalar(
            select(func.min(messages.c.expires_at)).where(messages.c.state == MailState.OPEN, INSTRUCTION)
        )
        return following
