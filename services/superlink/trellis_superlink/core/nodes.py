"""Nodes: both life cycles of the edge protocol, liveness by heartbeat, adoption of unknown signed pairs.

The nodes that are not unregistered are held in memory as well, so that a heartbeat or a signature check costs no query;
heartbeats reach the database in batches, one write a second at most.
"""

from __future__ import annotations

import builtins
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from trellis_wire.identity import KeyProblem, parse_public_key, public_pem

from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import (
    BadInterval,
    Forbidden,
    Held,
    KeyInUse,
    KeyInvalid,
    NotFound,
    Refused,
    RegistrationClosed,
    TryAgainLater,
    Unauthenticated,
)
from trellis_superlink.core.federations import Federations
from trellis_superlink.core.letters import run_going_on
from trellis_superlink.core.principals import NO_ACCOUNT, SUPERLINK_NODE_ID, Kind, Principal
from trellis_superlink.store.database import Tx
from trellis_superlink.store.tables import beats, messages, nodes

_log = logging.getLogger(__name__)

DEFAULT_INTERVAL = 30.0
"""Seconds between heartbeats where the node did not say (Flower 1.20-1.42 announce 30)."""
PATIENCE = 2
"""A node is offline after so many intervals without a heartbeat (Flower 1.20-1.42)."""
MIN_INTERVAL, MAX_INTERVAL = 10.0, 1800.0
BEAT_EVERY = 1.0
_MAX_NAME = 200
MAX_WAITING = 1000
"""Nodes that may wait for approval at once: whoever reaches the port can add one."""

KEY_LIST = Principal.account("<id:key-list>", "key list")
"""Whose the nodes of `--auth-list-public-keys` are."""

UNHEARD = "The node is not available: it sent no heartbeat within twice its interval."
LEFT = "The node is not available: it left."


class Unknown(StrEnum):
    """What becomes of a node whose key no operator registered."""

    ADMIT = "admit"
    HOLD = "hold"  # it waits until an operator approves it
    REFUSE = "refuse"


class NodeStatus(StrEnum):
    """As the command line shows them (Flower 1.23-1.42)."""

    REGISTERED = "registered"
    ONLINE = "online"
    OFFLINE = "offline"
    UNREGISTERED = "unregistered"


@dataclass(frozen=True)
class Node:
    """Times are Unix seconds."""

    node_id: int
    public_key: bytes
    owner_id: str
    owner_name: str
    name: str
    location: str
    status: NodeStatus
    registered_at: float
    activated_at: float | None
    deactivated_at: float | None
    unregistered_at: float | None
    online_until: float | None
    heartbeat_interval: float
    self_registered: bool = True
    held: bool = False  # waits for approval


class Nodes:
    def __init__(
        self,
        ground: Ground,
        gone: Callable[[Tx, Sequence[int], str], object],
        federations: Federations,
        *,
        unknown: Unknown,
    ) -> None:
        """`gone` answers, inside a transaction, what nodes that went away still had to do. `unknown`: what becomes of
        nodes that registered themselves; one that an operator approved is that operator's."""
        self._ground = ground
        self._gone = gone
        self._federations = federations
        self._unknown = unknown
        self._nodes: dict[int, Node] = {}
        self._by_key: dict[bytes, int] = {}
        self._beating: set[int] = set()
        self._lost: set[int] = set()  # fell silent, and what they had to do was answered

    async def load(self) -> None:
        """At start: who was online when this SuperLink went down gets two intervals to come back."""

        def read(tx: Tx) -> builtins.list[Any]:
            return list(tx.conn.execute(select(nodes).where(nodes.c.unregistered_at.is_(None))).all())

        rows = await self._ground.db.write(read)
        last = await self._ground.db.read(lambda conn: conn.scalar(select(beats.c.at))) or 0.0
        now = self._ground.clock()
        for row in rows:
            node = Node(status=NodeStatus.OFFLINE, **row._asdict())
            if node.online_until is not None and node.online_until > last:
                node = replace(node, online_until=now + PATIENCE * node.heartbeat_interval)
            self._keep(node)
        self._watch()
        # What a crash kept us from answering.
        await self._ground.db.write(self._answer_for_the_absent)

    def _answer_for_the_absent(self, tx: Tx) -> None:
        waiting = tx.conn.scalars(
            select(messages.c.dst_node_id).where(messages.c.state == 0, messages.c.reply_to.is_(None)).distinct()
        ).all()
        absent = [node_id for node_id in waiting if not self.online(node_id)]
        if absent:
            self._gone(tx, absent, UNHEARD)

    # ---- up to 1.22

    async def create(self, public_key: bytes, heartbeat_interval: float) -> int:
        """CreateNode (Flower 1.20-1.22): registers the key if it is new and brings the node online.
        RegistrationClosed when only the operator registers nodes and this key is none of theirs, Held."""
        if public_key not in self._by_key:
            self._require_open()
            await self._take_in(public_key)
        return await self.activate(public_key, heartbeat_interval or DEFAULT_INTERVAL)

    async def delete(self, who: Principal) -> None:
        """DeleteNode (Flower 1.20-1.22): a self-registered node goes away, an operator's goes offline."""
        node = self._nodes.get(who.node_id)
        if node is not None and node.self_registered:
            await self._remove(who.node_id)
        else:
            await self.deactivate(who)

    # ---- 1.23 on

    async def register(self, public_key: bytes) -> int:
        """RegisterNode on Fleet (1.23 on): by the node itself. The same key again gives the same id, also while it
        waits for approval. RegistrationClosed; KeyInUse when an operator registered it."""
        self._require_open()
        known = self._by_key.get(public_key)
        if known is not None:
            if not self._nodes[known].self_registered and self._unknown is Unknown.ADMIT:
                raise KeyInUse("Public key already in use")
            return known
        return await self._take_in(public_key)

    async def activate(self, public_key: bytes, heartbeat_interval: float) -> int:
        """ActivateNode (1.23 on): online until two intervals from now. NotFound for an unknown key,
        BadInterval, Held, Unauthenticated."""
        _check(heartbeat_interval)
        node_id = self._by_key.get(public_key)
        if node_id is None:
            raise NotFound("Public key not recognized")
        self._require_approved(self._nodes[node_id])
        now = self._ground.clock()
        changes = {
            "activated_at": now,
            "deactivated_at": None,
            "online_until": now + PATIENCE * heartbeat_interval,
            "heartbeat_interval": heartbeat_interval,
        }
        await self._ground.db.write(
            lambda tx: tx.conn.execute(update(nodes).where(nodes.c.node_id == node_id).values(changes))
        )
        self._keep(replace(self._nodes[node_id], **changes))  # type: ignore[arg-type]
        self._watch()
        _log.info("node online", extra={"node_id": node_id})
        return node_id

    async def deactivate(self, who: Principal) -> None:
        """DeactivateNode (1.23 on): offline now; what it had to do gets error 5."""
        node_id = who.node_id
        now = self._ground.clock()

        def leave(tx: Tx) -> None:
            tx.conn.execute(
                update(nodes).where(nodes.c.node_id == node_id).values(deactivated_at=now, online_until=None)
            )
            self._gone(tx, [node_id], LEFT)

        await self._ground.db.write(leave)
        if node_id in self._nodes:
            self._keep(replace(self._nodes[node_id], deactivated_at=now, online_until=None))
        self._beating.discard(node_id)
        _log.info("node offline", extra={"node_id": node_id})

    async def enrol(self, who: Principal, public_key: bytes, *, name: str = "", location: str = "") -> int:
        """RegisterNode on Control, by an account; approves a node that waits for it. KeyInvalid, KeyInUse; Refused for
        a name that cannot be shown."""
        _require_operator(who)
        for text in (name, location):
            if len(text) > _MAX_NAME or not text.isprintable():
                raise Refused(f"A node's name and location are printable and {_MAX_NAME} characters long at most.")
        try:
            key = public_pem(parse_public_key(public_key))
        except KeyProblem as error:
            raise KeyInvalid("The provided public key is not valid") from error
        known = self._by_key.get(key)
        if known is not None:
            if not self._waits(self._nodes[known]):
                raise KeyInUse("Public key already in use")
            await self._approve(known, who, name, location)
            return known
        return await self._insert(key, who, self_registered=False, name=name, location=location)

    async def keep_listed(self, keys: Iterable[bytes]) -> None:
        """At start: the nodes of `--auth-list-public-keys` are these, no more and no fewer. KeyInvalid."""
        try:
            listed = {public_pem(parse_public_key(key)) for key in keys}
        except KeyProblem as error:
            raise KeyInvalid(str(error)) from error
        for node in [one for one in self._nodes.values() if one.owner_id == KEY_LIST.id]:
            if node.public_key not in listed:
                await self._remove(node.node_id)
        for key in listed:
            known = self._by_key.get(key)
            if known is None:
                await self._insert(key, KEY_LIST, self_registered=False)
            elif self._nodes[known].self_registered:
                await self._approve(known, KEY_LIST)

    async def unregister(self, who: Principal, node_id: int) -> None:
        """Ends the node for good; by an account (Control) or the node itself (Fleet: RegistrationClosed when the
        operator registers). NotFound."""
        if who.kind is Kind.NODE:
            self._require_open()
            if who.node_id != node_id:
                raise Forbidden("A node may unregister itself only.")
        else:
            _require_operator(who)
        if node_id not in self._nodes:
            raise NotFound("Node ID not found for account")
        await self._remove(node_id)

    # ---- who is who, who is there

    async def authenticate(self, node_id: int, public_key: bytes) -> Principal:
        """The node that this validly signed key speaks for. An unknown pair is adopted where registration is open
        (WIRE.md 2.5); Unauthenticated otherwise, or when either half belongs to another; Held."""
        node = self._nodes.get(node_id)
        if node is None:
            await self._adopt(node_id, public_key)
            node = self._nodes[node_id]
        if node.public_key != public_key:
            raise Unauthenticated("Invalid node ID")
        self._require_approved(node)
        return Principal.node(node_id, node.name)

    def reaches(self, who: Principal, node_id: int) -> bool:
        """Whether there is such a node in the federation of the caller's run."""
        return node_id in self._nodes and self._federations.holds(who.federation, node_id)

    def online(self, node_id: int) -> bool:
        node = self._nodes.get(node_id)
        return (
            node is not None
            and node.online_until is not None
            and node.online_until > self._ground.clock()
            and not self._waits(node)
        )

    @property
    def known_count(self) -> int:
        return len(self._nodes)

    @property
    def online_count(self) -> int:
        return sum(self.online(node_id) for node_id in self._nodes)

    def heartbeat(self, who: Principal, interval: float | None = None) -> None:
        """The node lives: online for two more intervals (its last known one if None). Never waits; written in
        batches. BadInterval is raised for an interval outside 10..1800 s."""
        if interval is not None:
            _check(interval)
        node = self._nodes.get(who.node_id)
        if node is None:
            return
        if node.deactivated_at is not None and interval is not None:
            return  # a straggler of a heartbeat thread: the node said goodbye, and only asking for work unsays it
        every = interval or node.heartbeat_interval
        now = self._ground.clock()
        was_online = self.online(node.node_id)
        self._keep(replace(node, heartbeat_interval=every, online_until=now + PATIENCE * every, deactivated_at=None))
        if not was_online:
            self._lost.discard(node.node_id)
            self._watch()
            _log.info("node online", extra={"node_id": node.node_id})
        self._beating.add(node.node_id)
        self._ground.deadlines.earlier("nodes/beat", now + BEAT_EVERY, self.write_beats)

    async def write_beats(self) -> None:
        """Brings the heartbeats since the last time into the database."""
        beating, self._beating = self._beating, set()
        rows = [
            {
                "id": node_id,
                "until": self._nodes[node_id].online_until,
                "every": self._nodes[node_id].heartbeat_interval,
                "left": self._nodes[node_id].deactivated_at,
            }
            for node_id in beating
            if node_id in self._nodes
        ]
        if not rows:
            return

        def write(tx: Tx) -> None:
            tx.conn.execute(_BEAT, rows)
            self._beat(tx)

        try:
            await self._ground.db.write(write)
        except BaseException:
            self._beating |= beating
            raise

    async def list(self, who: Principal, federation: str | None = None) -> builtins.list[Node]:
        """All nodes that are not unregistered, or those of one federation; oldest first."""
        _require_operator(who)
        found = [
            self._shown(node)
            for node in self._nodes.values()
            if federation is None or self._federations.holds(federation, node.node_id)
        ]
        return sorted(found, key=lambda node: node.registered_at)

    async def available(self, who: Principal) -> Sequence[Node]:
        """The nodes online in the federation of the caller's run (GetNodes). Forbidden without a run, RunOver."""
        run_id = who.run
        await self._ground.db.read(lambda conn: run_going_on(conn, run_id))
        return [
            self._shown(node)
            for node in self._nodes.values()
            if self.online(node.node_id) and self._federations.holds(who.federation, node.node_id)
        ]

    # ---- inside

    def _shown(self, node: Node) -> Node:
        if self._waits(node):
            return replace(node, status=NodeStatus.REGISTERED, held=True)
        if self.online(node.node_id):
            return replace(node, status=NodeStatus.ONLINE)
        return replace(node, status=NodeStatus.REGISTERED if node.activated_at is None else NodeStatus.OFFLINE)

    def _keep(self, node: Node) -> None:
        self._nodes[node.node_id] = node
        self._by_key[node.public_key] = node.node_id

    def _require_open(self) -> None:
        if self._unknown is Unknown.REFUSE:
            raise RegistrationClosed(
                "SuperNode authentication is enabled. All SuperNodes must be registered via the CLI."
            )

    def _waits(self, node: Node) -> bool:
        """Whether no operator has said yes to it, and one has to. Also those that came while everybody was admitted."""
        return node.self_registered and self._unknown is not Unknown.ADMIT

    def _require_approved(self, node: Node) -> None:
        if not self._waits(node):
            return
        if self._unknown is Unknown.HOLD:
            raise Held(f"SuperNode {node.node_id} waits until an operator approves it.")
        raise Unauthenticated("The node's key was not registered by an operator")

    async def _take_in(self, public_key: bytes, node_id: int | None = None) -> int:
        """A node that came by itself. TryAgainLater where too many wait already."""
        if self._unknown is Unknown.HOLD and sum(map(self._waits, self._nodes.values())) >= MAX_WAITING:
            raise TryAgainLater("Too many SuperNodes wait for approval.")
        taken = await self._insert(public_key, NO_ACCOUNT, self_registered=True, node_id=node_id)
        if self._unknown is Unknown.HOLD:
            _log.warning("A SuperNode waits for approval: trellis supernode approve %d", taken)
        return taken

    async def _approve(self, node_id: int, who: Principal, name: str = "", location: str = "") -> None:
        """The node is the operator's from now on."""
        node = self._nodes[node_id]
        changes = {
            "self_registered": False,
            "owner_id": who.id,
            "owner_name": who.name,
            "name": name or node.name,
            "location": location or node.location,
        }
        await self._ground.db.write(
            lambda tx: tx.conn.execute(update(nodes).where(nodes.c.node_id == node_id).values(changes))
        )
        self._keep(replace(self._nodes[node_id], **changes))  # type: ignore[arg-type]
        _log.info("node approved", extra={"node_id": node_id})

    async def _insert(
        self,
        public_key: bytes,
        owner: Principal,
        *,
        self_registered: bool,
        node_id: int | None = None,
        name: str = "",
        location: str = "",
    ) -> int:
        """A new node; the database's unique index decides between two at the same moment."""
        now = self._ground.clock()

        def add(tx: Tx) -> Node:
            holder = tx.conn.scalar(
                select(nodes.c.node_id).where(nodes.c.public_key == public_key, nodes.c.unregistered_at.is_(None))
            )
            if holder is not None:
                raise KeyInUse("Public key already in use")
            chosen = node_id
            while chosen is None or chosen <= SUPERLINK_NODE_ID:
                chosen = secrets.randbits(64)
            values = {
                "node_id": chosen,
                "public_key": public_key,
                "self_registered": self_registered,
                "owner_id": owner.id,
                "owner_name": owner.name,
                "name": name,
                "location": location,
                "registered_at": now,
                "activated_at": None,
                "deactivated_at": None,
                "unregistered_at": None,
                "online_until": None,
                "heartbeat_interval": DEFAULT_INTERVAL,
            }
            tx.conn.execute(insert(nodes).values(values))
            return Node(status=NodeStatus.REGISTERED, **values)  # type: ignore[arg-type]

        node = await self._ground.db.write(add)
        self._keep(node)
        _log.info("node registered", extra={"node_id": node.node_id})
        return node.node_id

    async def _adopt(self, node_id: int, public_key: bytes) -> None:
        if self._unknown is Unknown.REFUSE or node_id <= SUPERLINK_NODE_ID or public_key in self._by_key:
            raise Unauthenticated("Invalid node ID")
        gone = await self._ground.db.read(
            lambda conn: conn.scalar(select(nodes.c.unregistered_at).where(nodes.c.node_id == node_id))
        )
        if gone is not None:
            raise Unauthenticated("The node was unregistered")
        try:
            await self._take_in(public_key, node_id)
        except KeyInUse as error:
            if node_id not in self._nodes:  # else: another call of the same node was faster
                raise Unauthenticated("Invalid node ID") from error
        if self._waits(self._nodes[node_id]):
            return
        self._keep(replace(self._nodes[node_id], activated_at=self._ground.clock()))
        _log.warning("adopted a node that this database did not know", extra={"node_id": node_id})

    async def _remove(self, node_id: int) -> None:
        now = self._ground.clock()

        def remove(tx: Tx) -> None:
            tx.conn.execute(
                update(nodes).where(nodes.c.node_id == node_id).values(unregistered_at=now, online_until=None)
            )
            self._federations.release(tx, node_id)
            self._gone(tx, [node_id], LEFT)

        await self._ground.db.write(remove)
        node = self._nodes.pop(node_id, None)
        if node is not None:
            self._by_key.pop(node.public_key, None)
        self._beating.discard(node_id)
        self._lost.discard(node_id)
        _log.info("node unregistered", extra={"node_id": node_id})

    def _watch(self) -> None:
        online = [node.online_until for node in self._nodes.values() if node.online_until is not None]
        now = self._ground.clock()
        coming = [until for until in online if until > now]
        if coming:
            self._ground.deadlines.earlier("nodes/offline", min(coming), self._look)

    async def _look(self) -> None:
        """Who has not been heard of in time is offline."""
        now = self._ground.clock()
        late = [
            node.node_id
            for node in self._nodes.values()
            if node.online_until is not None and node.online_until <= now and node.node_id not in self._lost
        ]
        if late:

            def write(tx: Tx) -> None:
                self._gone(tx, late, UNHEARD)
                self._beat(tx)

            await self._ground.db.write(write)
            for node_id in late:
                if not self.online(node_id):
                    self._lost.add(node_id)
                    _log.warning("node offline: no heartbeat", extra={"node_id": node_id})
        self._watch()

    def _beat(self, tx: Tx) -> None:
        now = self._ground.clock()
        if not tx.conn.execute(update(beats).values(at=now)).rowcount:
            tx.conn.execute(insert(beats).values(id=1, at=now))

    def forget_unregistered(self, tx: Tx, before: float) -> None:
        """Retention: the rows of nodes that went away long ago."""
        tx.conn.execute(delete(nodes).where(nodes.c.unregistered_at < before))


_BEAT = (
    update(nodes)
    .where(nodes.c.node_id == bindparam("id"))
    .values(online_until=bindparam("until"), heartbeat_interval=bindparam("every"), deactivated_at=bindparam("left"))
)


def _check(interval: float) -> None:
    if not MIN_INTERVAL <= interval <= MAX_INTERVAL:
        raise BadInterval("Invalid heartbeat interval.")


def _require_operator(who: Principal) -> None:
    if who.kind not in (Kind.ACCOUNT, Kind.SYSTEM):
        raise Forbidden("Only an account may ask this.")
