"""Instructions from ServerApps to nodes, and the replies to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, func, insert, or_, select, update
from trellis_wire.messages import (
    ErrorCode,
    MessageError,
    Metadata,
    decode_message_object,
    error_reply_to,
    instruction_problem,
    reply_problem,
)
from trellis_wire.objects import ObjectError, Tree, check_head, verify_object

from trellis_superlink.core import trees
from trellis_superlink.core.base import Ground
from trellis_superlink.core.ledger import Ledger
from trellis_superlink.core.letters import (
    COMPLETE,
    INSTRUCTION,
    Letters,
    MailState,
    Row,
    error_of,
    metadata_of,
    run_going_on,
    tops_of,
    values_of,
)
from trellis_superlink.core.nodes import UNHEARD, Nodes
from trellis_superlink.core.parcels import INLINE_ANSWER, INLINE_OBJECT, Parcel, Pushed
from trellis_superlink.core.principals import SUPERLINK_NODE_ID, Principal
from trellis_superlink.core.quotas import Quotas
from trellis_superlink.core.treecache import Content, TreeCache
from trellis_superlink.core.trees import Planting
from trellis_superlink.store.database import Tx
from trellis_superlink.store.signals import Listener, node_topic, replies_topic
from trellis_superlink.store.tables import messages, objects

MAX_DELIVERIES = 3
"""How often an instruction is handed to its node before it is answered with error 8 (design.md 6)."""


@dataclass(frozen=True)
class Reply:
    """`instruction_id` is what it answers."""

    instruction_id: str
    parcel: Parcel


_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_ROWS = select(messages).where(messages.c.message_id.in_(_IDS))
_NEW = insert(messages)
# A reply's own row, its instruction, and whatever reply that has already.
_AROUND = select(messages).where(or_(messages.c.message_id.in_(_IDS), messages.c.reply_to == bindparam("instruction")))
_OPEN = (
    select(messages)
    .where(
        messages.c.dst_node_id == bindparam("node"),
        messages.c.state == int(MailState.OPEN),
        INSTRUCTION,
        COMPLETE,
        messages.c.expires_at > bindparam("now"),
    )
    .order_by(messages.c.pushed_at, messages.c.message_id)
)
_DELIVERED = update(messages).where(messages.c.message_id.in_(_IDS)).values(deliveries=messages.c.deliveries + 1)
_INSTRUCTIONS = select(messages.c.message_id).where(
    messages.c.message_id.in_(_IDS), messages.c.run_id == bindparam("run"), INSTRUCTION
)
_REPLIES_TO = select(messages).where(messages.c.reply_to.in_(_IDS), messages.c.run_id == bindparam("run"), COMPLETE)
_ARRIVED = (
    select(messages)
    .where(messages.c.run_id == bindparam("run"), messages.c.arrival > bindparam("after"))
    .order_by(messages.c.arrival)
)
_LAST = select(func.max(messages.c.arrival)).where(messages.c.run_id == bindparam("run"))
_MINE = select(messages.c.message_id).where(
    messages.c.message_id.in_(_IDS),
    messages.c.run_id == bindparam("run"),
    messages.c.reply_to.is_not(None),
    COMPLETE,
)
_SMALL = select(objects.c.object_id, objects.c.content).where(
    objects.c.object_id.in_(_IDS), objects.c.content.is_not(None), objects.c.size <= INLINE_OBJECT
)

_AT_ONCE = 4  # replies read together; each may bring its whole allowance of small objects


class Mail:
    def __init__(
        self, ground: Ground, letters: Letters, cache: TreeCache, nodes: Nodes, ledger: Ledger, quotas: Quotas
    ) -> None:
        self._ground = ground
        self._quotas = quotas
        self._letters = letters
        self._cache = cache
        self._nodes = nodes
        self._ledger = ledger
        self._held: dict[int, _Hold] = {}

    @property
    def held(self) -> int:
        """How many calls wait for instructions now."""
        return len(self._held)

    # ---- pushing

    async def push_instructions(self, who: Principal, parcels: Sequence[Parcel]) -> Pushed:
        """From the executor of a run. A message becomes deliverable once all its objects are here; one to a node that
        is offline is answered with error 5 at once. RunOver, BadObject, OverQuota, TryAgainLater."""
        run_id = who.run
        now = self._ground.clock()
        refusals = [
            _parcel_problem(parcel)
            or instruction_problem(parcel.metadata, now=now)
            or ("The message names another run." if parcel.metadata.run_id != run_id else "")
            or self._addressee_problem(who, parcel.metadata.dst_node_id)
            for parcel in parcels
        ]
        taken = [parcel for parcel, refusal in zip(parcels, refusals, strict=True) if not refusal]
        away = {meta.dst_node_id for meta in (p.metadata for p in taken) if not self._nodes.online(meta.dst_node_id)}

        def push(tx: Tx) -> list[str]:
            run_going_on(tx.conn, run_id)
            known = self._known(tx.conn, taken)
            new = list({p.tree.object_id: p for p in taken if p.tree.object_id not in known}.values())
            unreachable = [p for p in new if p.metadata.dst_node_id in away]
            missing = self._plant(tx, [p for p in new if p.metadata.dst_node_id not in away], now)
            if unreachable:
                tx.conn.execute(_NEW, [values_of(p, now, state=MailState.FREED) for p in unreachable])
                for row in self._rows(tx.conn, [p.tree.object_id for p in unreachable]):
                    self._letters.answer_with_error(tx, row, ErrorCode.NODE_UNAVAILABLE, UNHEARD)
            return self._still_missing(tx.conn, known.values(), missing)

        inline = {object_id: len(content) for parcel in taken for object_id, content in parcel.objects.items()}
        size = sum(inline.values())
        await self._quotas.take(who, size)
        try:
            missing = await self._ground.db.write(push) if taken else []
        finally:
            self._quotas.arrived(who, size)
        if taken:
            self._letters.watch_expiry(min(parcel.metadata.expires_at for parcel in taken))
        return Pushed(refusals, missing)

    async def push_reply(self, who: Principal, parcel: Parcel, *, runtime: float | None = None) -> Pushed:
        """From a node; `runtime` in seconds. The refusal says which rule of WIRE.md 2.7 it broke (stock nodes are not
        told). The identical reply again is taken; a different second one is refused, unless the first never became
        complete: then it takes its place. RunOver, BadObject, TryAgainLater."""
        node_id = who.node_id
        meta = parcel.metadata
        now = self._ground.clock()
        self._nodes.heartbeat(who)
        problem = _parcel_problem(parcel) or ("" if meta.src_node_id == node_id else "The reply names another sender.")
        if problem:
            return Pushed([problem], [])

        def push(tx: Tx) -> Pushed:
            own = first = found = None
            wanted = {"ids": [parcel.tree.object_id, meta.reply_to_message_id], "instruction": meta.reply_to_message_id}
            for row in tx.conn.execute(_AROUND, wanted):
                if row.message_id == parcel.tree.object_id:
                    own = row
                elif row.reply_to is not None:
                    first = row
                else:
                    found = row
            if own is not None:
                run_going_on(tx.conn, meta.run_id)
                return Pushed([""], self._still_missing(tx.conn, [own], []))
            if found is None:
                return Pushed(["The reply answers an instruction that does not exist."], [])
            refusal = reply_problem(meta, metadata_of(found), now=now)
            if refusal:
                return Pushed([refusal], [])
            run_going_on(tx.conn, meta.run_id)
            if first is not None:
                if first.arrival is not None:
                    return Pushed(["The instruction was answered already."], [])
                self._letters.drop(tx, first.message_id)
            return Pushed([""], self._plant(tx, [parcel], now, runtime))

        pushed = await self._ground.db.write(push)
        if not any(pushed.refusals):
            self._ledger.received(meta.run_id, _along(parcel))
        return pushed

    def _addressee_problem(self, who: Principal, node_id: int) -> str:
        return "" if self._nodes.reaches(who, node_id) else "The message goes to a node that this run does not have."

    def _known(self, conn: Connection, parcels: Sequence[Parcel]) -> dict[str, Row]:
        return {row.message_id: row for row in self._rows(conn, [parcel.tree.object_id for parcel in parcels])}

    def _rows(self, conn: Connection, ids: Sequence[str]) -> list[Row]:
        return [row for batch in trees.batches(ids) for row in conn.execute(_ROWS, {"ids": batch})]

    def _still_missing(self, conn: Connection, known: Collection[Row], missing: Sequence[str]) -> list[str]:
        """What is missing of new messages and of those pushed again."""
        again = [top for row in known if row.arrival is None and row.state == MailState.OPEN for top in tops_of(row)]
        return list(dict.fromkeys([*missing, *trees.missing_below(conn, again)])) if again else list(missing)

    def _plant(self, tx: Tx, parcels: Sequence[Parcel], now: float, runtime: float | None = None) -> list[str]:
        """Stores messages with their trees; those that lack nothing are deliverable. What is missing."""
        if not parcels:
            return []
        registered = trees.register(
            tx, [Planting(p.tree, [t.object_id for t in (p.tree, *p.tree.children)], p.objects) for p in parcels]
        )
        rows = []
        ready: list[tuple[Row, Content | None]] = []
        for parcel in parcels:
            values = values_of(parcel, now, runtime=runtime)
            sizes = [registered.sizes[object_id] for object_id in parcel.tree.post_order()]
            if None not in sizes:
                own = len(sizes) - 1  # the message's own object comes last
                content = None
                if parcel.tree.children:
                    content = self._cache.put(parcel.tree.children[0], sum(size or 0 for size in sizes[:own]))
                    values["size"] = content.size
                reply = values["reply_to"] is not None
                values["arrival"] = self._letters.next_arrival(tx, parcel.metadata.run_id) if reply else 0
                ready.append((SimpleNamespace(**values), content))
            rows.append(values)
        tx.conn.execute(_NEW, rows)
        for row, content in ready:
            self._letters.ready(tx, row, content)
        self._letters.completed(tx, registered.completed)
        return registered.missing

    # ---- to nodes

    async def wait_for_instructions(
        self,
        who: Principal,
        *,
        limit: int = 1,
        working_on: Collection[str] = (),
        timeout: float,
        inline: int = 0,
    ) -> list[Parcel]:
        """What is to be done by the node, as soon as there is any; [] after `timeout` seconds. Up to `inline` bytes of
        small objects come along. An instruction delivered before, unanswered and not in `working_on` was lost: it comes
        again, three times at most, then it is answered with error 8. A newer wait of the same node ends this one."""
        node_id = who.node_id
        self._nodes.heartbeat(who)
        with _Hold(self._held, node_id, self._ground.signals.listen(node_topic(node_id))) as hold:
            ends = self._ground.clock() + timeout
            busy = frozenset(working_on)
            look = await self._ground.db.read(lambda conn: self._anything(conn, node_id, busy))
            while True:
                if look:
                    if hold.superseded:
                        return []
                    found = await self._ground.db.write(
                        lambda tx: self._hand_out(tx, node_id, max(limit, 1), busy, inline)
                    )
                    if found:
                        for parcel in found:
                            self._ledger.sent(parcel.metadata.run_id, _along(parcel))
                        return found
                left = ends - self._ground.clock()
                if left <= 0 or not await hold.listener.wait(left) or hold.superseded:
                    return []
                look = True

    def _open(self, conn: Connection, node_id: int) -> list[Row]:
        return list(conn.execute(_OPEN, {"node": node_id, "now": self._ground.clock()}))

    def _anything(self, conn: Connection, node_id: int, working_on: Collection[str]) -> bool:
        return any(row.message_id not in working_on for row in self._open(conn, node_id))

    def _hand_out(self, tx: Tx, node_id: int, limit: int, working_on: frozenset[str], inline: int) -> list[Parcel]:
        todo = [row for row in self._open(tx.conn, node_id) if row.message_id not in working_on]
        for row in todo:
            if row.deliveries >= MAX_DELIVERIES:
                self._letters.answer_with_error(
                    tx,
                    row,
                    ErrorCode.CLIENT_APP_CRASHED,
                    f"The node took the instruction {MAX_DELIVERIES} times and never answered.",
                )
        handed = [row for row in todo if row.deliveries < MAX_DELIVERIES][:limit]
        if handed:
            tx.conn.execute(_DELIVERED, {"ids": [row.message_id for row in handed]})
        return self._parcels(tx.conn, handed, inline)

    def _parcels(self, conn: Connection, rows: Sequence[Row], inline: int) -> list[Parcel]:
        """The messages with their trees, and `inline` bytes of their small objects: each message's own first."""
        forest = {row.message_id: self._tree(conn, row) for row in rows}
        contents: dict[str, bytes] = {}
        if inline:
            wanted = dict.fromkeys(forest)
            wanted.update(dict.fromkeys(i for tree in forest.values() for i in reversed(tree.post_order())))
            contents = _small(conn, list(wanted), inline)
        parcels = []
        for row in rows:
            tree = forest[row.message_id]
            along = {i: contents[i] for i in tree.post_order() if i in contents} if contents else {}
            parcels.append(Parcel(metadata_of(row), tree, error_of(row), along))
        return parcels

    def _tree(self, conn: Connection, row: Row) -> Tree:
        if row.content_id is None:
            return Tree(row.message_id)
        return Tree(row.message_id, (self._cache.get(conn, row.content_id).tree,))

    # ---- to the ServerApp

    async def replies(
        self, who: Principal, instruction_ids: Sequence[str], *, inline: int = INLINE_ANSWER
    ) -> AsyncIterator[Reply]:
        """Each reply as it comes, in order of arrival, `inline` bytes of small objects with each (its own object
        always); ends after the last. For what cannot come any more, the error the SuperLink makes (3 expired or never
        there, 4 reply expired, 5 node unavailable, 8 node crashed). RunOver."""
        run_id = who.run
        remaining = set(instruction_ids)
        with self._ground.signals.listen(replies_topic(run_id)) as listener:
            first_look = partial(
                self._first_look, run_id=run_id, ids=list(dict.fromkeys(instruction_ids)), inline=inline
            )
            strangers, news = await self._ground.db.read(first_look)
            for instruction_id in strangers:
                remaining.discard(instruction_id)
                yield Reply(instruction_id, self._stranger(run_id, instruction_id))
            while remaining:
                for row in news.rows:
                    if row.reply_to in remaining:
                        remaining.discard(row.reply_to)
                        parcel = news.parcels.get(row.message_id) or await self._parcel_of(row, inline)
                        yield Reply(row.reply_to, parcel)
                if remaining:
                    await listener.wait()
                    news = await self._ground.db.read(
                        partial(self._arrived, run_id=run_id, after=news.last, inline=inline)
                    )

    def _first_look(
        self, conn: Connection, run_id: int, ids: Sequence[str], inline: int
    ) -> tuple[Sequence[str], _News]:
        """The ids that are no instructions of the run, and the replies there are."""
        run_going_on(conn, run_id)
        known: set[str] = set()
        rows: list[Row] = []
        for batch in trees.batches(ids):
            known.update(conn.scalars(_INSTRUCTIONS, {"ids": batch, "run": run_id}))
            rows.extend(conn.execute(_REPLIES_TO, {"ids": batch, "run": run_id}))
        rows.sort(key=lambda row: int(row.arrival))
        last: int | None = conn.scalar(_LAST, {"run": run_id})
        return [i for i in ids if i not in known], _News(rows, last or 0, self._ready_parcels(conn, rows, inline))

    def _arrived(self, conn: Connection, run_id: int, after: int, inline: int) -> _News:
        run_going_on(conn, run_id)
        rows = conn.execute(_ARRIVED, {"run": run_id, "after": after}).all()
        return _News(rows, rows[-1].arrival if rows else after, self._ready_parcels(conn, rows, inline))

    def _ready_parcels(self, conn: Connection, rows: Sequence[Row], inline: int) -> dict[str, Parcel]:
        """The first few of these replies as they are to be told; the others are read when it is their turn."""
        now = self._ground.clock()
        good = [row for row in rows if row.state == MailState.OPEN and not _late(row, now)]
        return {row.message_id: self._parcels(conn, [row], max(inline, 1))[0] for row in good[:_AT_ONCE]}

    async def _parcel_of(self, row: Row, inline: int) -> Parcel:
        if row.state == MailState.OPEN and _late(row, self._ground.clock()):
            row = await self._ground.db.write(partial(self._reply_expired, reply=row))
        if row.state != MailState.OPEN:  # taken before: its objects are gone or going
            return self._stranger(row.run_id, row.reply_to)
        return (await self._ground.db.read(lambda conn: self._parcels(conn, [row], max(inline, 1))))[0]

    def _reply_expired(self, tx: Tx, reply: Row) -> Row:
        instruction = self._rows(tx.conn, [reply.reply_to])[0]
        self._letters.replace_with_error(
            tx, reply, instruction, ErrorCode.REPLY_UNAVAILABLE, "The reply expired before it was asked for."
        )
        return tx.conn.execute(_REPLIES_TO, {"ids": [reply.reply_to], "run": reply.run_id}).one()

    def _stranger(self, run_id: int, instruction_id: str) -> Parcel:
        """Error 3 for what was never there or was taken before; made up for the one who asks, stored nowhere."""
        now = self._ground.clock()
        instruction = Metadata(run_id, instruction_id, SUPERLINK_NODE_ID, SUPERLINK_NODE_ID, "", "", 1.0, "system", now)
        error = MessageError(
            int(ErrorCode.MESSAGE_UNAVAILABLE), "There is no such instruction, or it was answered before."
        )
        metadata, content = error_reply_to(instruction, error, now=now)
        return Parcel(metadata, Tree(metadata.message_id), error, {metadata.message_id: content})

    async def confirm(self, who: Principal, message_ids: Sequence[str]) -> None:
        """The receiver has these messages. Replies' objects are freed; instructions' only once they are answered, as
        a node that has confirmed may still die."""
        if who.run_id is None:
            self._nodes.heartbeat(who)
            return
        run_id = who.run

        def take(tx: Tx) -> None:
            for batch in trees.batches(message_ids):
                mine = tx.conn.scalars(_MINE, {"ids": batch, "run": run_id}).all()
                self._letters.done(tx, mine)

        await self._ground.db.write(take)


@dataclass(frozen=True)
class _News:
    """Replies that arrived; `last` is the number of the last one looked at, `parcels` those read already."""

    rows: Sequence[Row]
    last: int
    parcels: Mapping[str, Parcel]


def _late(reply: Row, now: float) -> bool:
    return bool(reply.expires_at <= now and reply.src_node_id != SUPERLINK_NODE_ID)


class _Hold:
    """A held call of a node; the newest one counts."""

    def __init__(self, holds: dict[int, _Hold], node_id: int, listener: Listener) -> None:
        self._holds = holds
        self._node_id = node_id
        self.listener = listener
        self.superseded = False
        older = holds.get(node_id)
        if older is not None:
            older.superseded = True
            older.listener.notify()
        holds[node_id] = self

    def __enter__(self) -> _Hold:
        return self

    def __exit__(self, *_error: Any) -> None:
        self.listener.close()
        if self._holds.get(self._node_id) is self:
            del self._holds[self._node_id]


def _along(parcel: Parcel) -> int:
    """Bytes of the objects that travel with the message itself."""
    return sum(map(len, parcel.objects.values()))


def _small(conn: Connection, ids: Sequence[str], most: int) -> dict[str, bytes]:
    """The contents of those that live in their rows, in the order given, `most` bytes of them; the first one always."""
    rows: dict[str, bytes] = {}
    for batch in trees.batches(ids):
        for row in conn.execute(_SMALL, {"ids": batch}):
            rows[row.object_id] = row.content
    chosen: dict[str, bytes] = {}
    total = 0
    for object_id in ids:
        content = rows.get(object_id)
        if content is not None and (not chosen or total + len(content) <= most):
            chosen[object_id] = content
            total += len(content)
    return chosen


def _parcel_problem(parcel: Parcel) -> str:
    """What is wrong with a parcel in itself: its objects against their ids, its tree, its own object against its
    metadata."""
    tree = parcel.tree
    if parcel.metadata.message_id != tree.object_id:
        return "The message's id is not that of its own object."
    if len(tree.children) != (1 if parcel.error is None else 0):
        return "A message has exactly one of content and error."
    nodes = tree.nodes()
    try:
        for object_id, content in parcel.objects.items():
            if object_id not in nodes:
                return f"Object {object_id[:16]}... came along and belongs to no message."
            check_head(nodes[object_id], verify_object(object_id, content))
        if tree.object_id in parcel.objects:
            metadata, error, _content = decode_message_object(parcel.objects[tree.object_id])
            if (metadata, error) != (parcel.metadata, parcel.error):
                return "The message's metadata is not what its own object says."
    except ObjectError as error_found:
        return str(error_found)
    return ""
