"""Federations: which accounts may run on which nodes.

Every SuperLink has the default federation. All accounts are in it, and all nodes that no other federation holds: a node
that is added to a federation works for that federation's members only.

The bindings of nodes are held in memory as well: they are asked for each message. Those of archived federations stay,
so that archiving a federation does not open its nodes to everybody.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import (
    BadFederationName,
    FederationExists,
    Forbidden,
    MemberAlready,
    NodeAlready,
    NoFederation,
    NoInvitation,
    NoMember,
    NotFound,
    Refused,
)
from trellis_superlink.core.permissions import Permission
from trellis_superlink.core.principals import DEFAULT_FEDERATION, Kind, Principal
from trellis_superlink.store.database import Tx
from trellis_superlink.store.tables import federation_members, federation_nodes, federations, invitations, nodes

_NAME = re.compile(r"@[A-Za-z0-9_-]{1,100}/[A-Za-z0-9_-]{1,100}")
"""What Flower's command lines take (1.26-1.42; WIRE.md 3.3)."""
_MAX_DESCRIPTION = 1000
_NONE = frozenset[str]()


class Role(StrEnum):
    """`owner` is who made the federation; what somebody may do there, permissions say."""

    OWNER = "owner"
    MEMBER = "member"


class InvitationStatus(StrEnum):
    """The strings are those of the edge protocol (Flower 1.27-1.42)."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Member:
    account_id: str
    account_name: str
    role: Role


@dataclass(frozen=True)
class Federation:
    name: str
    description: str = ""
    archived: bool = False
    members: Sequence[Member] = field(default=())


@dataclass(frozen=True)
class Invitation:
    """Times are Unix seconds. Who is invited is known by name: accounts are the login provider's."""

    federation: str
    inviter_id: str
    inviter_name: str
    invitee_name: str
    status: InvitationStatus
    created_at: float
    changed_at: float


class Federations:
    """`federations.manage` reaches every federation; without it an account sees those that it is a member of."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._of_node: dict[int, frozenset[str]] = {}

    async def load(self) -> None:
        """At start, before anybody asks."""
        rows = await self._ground.db.read(
            lambda conn: conn.execute(select(federation_nodes.c.node_id, federation_nodes.c.federation)).all()
        )
        for node_id, federation in rows:
            self._of_node[node_id] = self._of_node.get(node_id, _NONE) | {federation}

    # ---- accounts

    async def create(self, who: Principal, name: str, description: str = "") -> Federation:
        """`name`: `@account/name` with the caller's own account, or the name alone. BadFederationName,
        FederationExists, Refused."""
        _require_account(who)
        whole = name if name.startswith("@") else f"@{_spelled(who)}/{name}"
        if not _NAME.fullmatch(whole) or whole.partition("/")[0] != f"@{_spelled(who)}":
            raise BadFederationName(
                f"{name[:200]!r} cannot be a federation of yours: call it @{_spelled(who)}/NAME, with letters, digits, "
                "'-' and '_'."
            )
        if len(description) > _MAX_DESCRIPTION or not description.isprintable():
            raise Refused(f"A description is one printable line of {_MAX_DESCRIPTION} characters at most.")
        owner = Member(who.id, who.name, Role.OWNER)

        def add(tx: Tx) -> None:
            if tx.conn.scalar(select(federations.c.name).where(federations.c.name == whole)) is not None:
                raise FederationExists(f"There is a federation {whole} already, or was: names are not used again.")
            now = self._ground.clock()
            tx.conn.execute(insert(federations).values(name=whole, description=description, created_at=now))
            self._join(tx, whole, owner)

        await self._ground.db.write(add)
        return Federation(whole, description, members=(owner,))

    async def archive(self, who: Principal, name: str) -> None:
        """No run starts in it any more; those under way go on. For good. NoFederation."""

        def end(tx: Tx) -> None:
            self._require_active(tx.conn, who, name)
            tx.conn.execute(update(federations).where(federations.c.name == name).values(archived_at=self._now()))

        await self._ground.db.write(end)

    async def list(self, who: Principal) -> builtins.list[Federation]:
        """Those that the caller sees, in order of their names, without their members; the default one is first."""
        query = select(federations).order_by(federations.c.name)
        if not _manages(who):
            query = query.join(federation_members, federation_members.c.federation == federations.c.name).where(
                federation_members.c.account_id == who.id
            )
        rows = await self._ground.db.read(lambda conn: conn.execute(query).all())
        return [Federation(DEFAULT_FEDERATION), *(_federation(row) for row in rows)]

    async def get(self, who: Principal, name: str) -> Federation:
        """With its members; the default one has none but the caller to show. NoFederation."""
        if name == DEFAULT_FEDERATION:
            return Federation(name, members=(Member(who.id, who.name, Role.OWNER),))

        def read(conn: Connection) -> Federation:
            row = self._require(conn, who, name)
            query = select(federation_members).where(federation_members.c.federation == name)
            found = conn.execute(query.order_by(federation_members.c.since)).all()
            return _federation(row, [Member(one.account_id, one.account_name, Role(one.role)) for one in found])

        return await self._ground.db.read(read)

    def require_member(self, conn: Connection, who: Principal, name: str) -> None:
        """NoFederation where the caller may not start a run."""
        if name == DEFAULT_FEDERATION or who.kind is Kind.SYSTEM:
            return
        row = _row(conn, name)
        if row is None or row.archived_at is not None or not _is_member(conn, name, who.id):
            raise _no_federation(name)

    # ---- members

    async def invite(self, who: Principal, name: str, account_name: str) -> None:
        """NoFederation, MemberAlready, Refused for a second invitation."""
        if not account_name or len(account_name) > 200 or not account_name.isprintable():
            raise Refused("An invitation names one account, with 200 printable characters at most.")

        def add(tx: Tx) -> None:
            self._require_active(tx.conn, who, name)
            held = select(federation_members.c.account_id).where(
                federation_members.c.federation == name, federation_members.c.account_name == account_name
            )
            if tx.conn.scalar(held) is not None:
                raise MemberAlready(f"{account_name} is in {name} already.")
            if tx.conn.execute(_pending(name, account_name)).first() is not None:
                raise Refused(f"{account_name} was invited to {name} already.")
            now = self._now()
            tx.conn.execute(
                insert(invitations).values(
                    federation=name,
                    inviter_id=who.id,
                    inviter_name=who.name,
                    invitee_name=account_name,
                    status=InvitationStatus.PENDING,
                    created_at=now,
                    changed_at=now,
                )
            )

        await self._ground.db.write(add)

    async def revoke(self, who: Principal, name: str, account_name: str) -> None:
        """NoFederation, NoInvitation."""

        def end(tx: Tx) -> None:
            self._require(tx.conn, who, name)
            self._decide(tx, name, account_name, InvitationStatus.REVOKED)

        await self._ground.db.write(end)

    async def answer(self, who: Principal, name: str, *, accept: bool) -> None:
        """By who was invited. NoInvitation."""
        _require_account(who)

        def decide(tx: Tx) -> None:
            row = _row(tx.conn, name)
            if row is None or row.archived_at is not None:
                raise NoInvitation(f"You are not invited to '{name[:200]}'.")
            self._decide(tx, name, who.name, InvitationStatus.ACCEPTED if accept else InvitationStatus.REJECTED)
            if accept and not _is_member(tx.conn, name, who.id):
                self._join(tx, name, Member(who.id, who.name, Role.MEMBER))

        await self._ground.db.write(decide)

    async def invitations(self, who: Principal) -> tuple[builtins.list[Invitation], builtins.list[Invitation]]:
        """Those that the caller sent and those it received, oldest first."""
        _require_account(who)

        def read(conn: Connection) -> tuple[builtins.list[Invitation], builtins.list[Invitation]]:
            query = select(invitations).order_by(invitations.c.entry)
            sent = conn.execute(query.where(invitations.c.inviter_id == who.id)).all()
            received = conn.execute(query.where(invitations.c.invitee_name == who.name)).all()
            return [_invitation(row) for row in sent], [_invitation(row) for row in received]

        return await self._ground.db.read(read)

    async def remove_account(self, who: Principal, name: str, account_name: str | None) -> None:
        """None: the caller leaves. Its runs go on. NoFederation, NoMember, Forbidden."""

        def remove(tx: Tx) -> None:
            self._require(tx.conn, who, name)
            leaves = account_name is None or account_name == who.name
            if not leaves and not _manages(who):
                raise Forbidden("Only who manages federations may remove others.")
            mine = federation_members.c.account_id == who.id
            theirs = federation_members.c.account_name == account_name
            member = (federation_members.c.federation == name, mine if leaves else theirs)
            role = tx.conn.scalar(select(federation_members.c.role).where(*member))
            if role is None:
                raise NoMember(f"{who.name if leaves else account_name} is not in {name}.")
            if role == Role.OWNER:
                raise Refused(f"{name} keeps its owner; archive it where it is no longer needed.")
            tx.conn.execute(delete(federation_members).where(*member))

        await self._ground.db.write(remove)

    # ---- nodes

    async def add_node(self, who: Principal, name: str, node_id: int) -> None:
        """The node works for this federation from the next message on, and no more for the default one. NoFederation,
        NotFound, NodeAlready."""

        def add(tx: Tx) -> None:
            self._require_active(tx.conn, who, name)
            known = select(nodes.c.node_id).where(nodes.c.node_id == node_id, nodes.c.unregistered_at.is_(None))
            if tx.conn.scalar(known) is None:
                raise NotFound("Node ID not found for account")
            bound = select(federation_nodes.c.node_id).where(
                federation_nodes.c.federation == name, federation_nodes.c.node_id == node_id
            )
            if tx.conn.scalar(bound) is not None:
                raise NodeAlready(f"SuperNode {node_id} is in {name} already.")
            tx.conn.execute(insert(federation_nodes).values(federation=name, node_id=node_id))
            tx.afterwards(lambda: self._bind(node_id, self._of_node.get(node_id, _NONE) | {name}))

        await self._ground.db.write(add)

    async def remove_node(self, who: Principal, name: str, node_id: int) -> None:
        """A node that no federation holds any more is in the default one again. NoFederation, NotFound."""

        def remove(tx: Tx) -> None:
            self._require(tx.conn, who, name)
            gone = tx.conn.execute(
                delete(federation_nodes).where(
                    federation_nodes.c.federation == name, federation_nodes.c.node_id == node_id
                )
            ).rowcount
            if not gone:
                raise NotFound(f"SuperNode {node_id} is not in {name}.")
            tx.afterwards(lambda: self._bind(node_id, self._of_node.get(node_id, _NONE) - {name}))

        await self._ground.db.write(remove)

    def holds(self, name: str, node_id: int) -> bool:
        """Whether runs of this federation reach the node. Never waits."""
        held_by = self._of_node.get(node_id)
        return name == DEFAULT_FEDERATION if held_by is None else name in held_by

    def release(self, tx: Tx, node_id: int) -> None:
        """Of a node that is unregistered."""
        tx.conn.execute(delete(federation_nodes).where(federation_nodes.c.node_id == node_id))
        tx.afterwards(lambda: self._bind(node_id, _NONE))

    # ---- inside

    def _now(self) -> float:
        return self._ground.clock()

    def _bind(self, node_id: int, names: Iterable[str]) -> None:
        if held_by := frozenset(names):
            self._of_node[node_id] = held_by
        else:
            self._of_node.pop(node_id, None)

    def _join(self, tx: Tx, name: str, member: Member) -> None:
        tx.conn.execute(
            insert(federation_members).values(
                federation=name,
                account_id=member.account_id,
                account_name=member.account_name,
                role=member.role,
                since=self._now(),
            )
        )

    def _decide(self, tx: Tx, name: str, account_name: str, status: InvitationStatus) -> None:
        row = tx.conn.execute(_pending(name, account_name)).first()
        if row is None:
            raise NoInvitation(f"No invitation of {account_name} to '{name[:200]}' is open.")
        tx.conn.execute(
            update(invitations).where(invitations.c.entry == row.entry).values(status=status, changed_at=self._now())
        )

    def _require(self, conn: Connection, who: Principal, name: str) -> Any:
        """The row of a federation that the caller sees."""
        _require_account(who)
        if name == DEFAULT_FEDERATION:
            raise Refused("The default federation is of all accounts and of all nodes that no other one holds.")
        row = _row(conn, name)
        if row is None or not (_manages(who) or _is_member(conn, name, who.id)):
            raise _no_federation(name)
        return row

    def _require_active(self, conn: Connection, who: Principal, name: str) -> None:
        if self._require(conn, who, name).archived_at is not None:
            raise Refused(f"{name} is archived.")


def _require_account(who: Principal) -> None:
    if who.kind not in (Kind.ACCOUNT, Kind.SYSTEM):
        raise Forbidden("Only an account may ask this.")


def _no_federation(name: str) -> NoFederation:
    """The same for those that are not there and those of others."""
    return NoFederation(f"Federation '{name[:200]}' does not exist")


def _manages(who: Principal) -> bool:
    return who.kind is Kind.SYSTEM or Permission.FEDERATIONS_MANAGE in who.may


def _spelled(who: Principal) -> str:
    """The account's name with what a federation's name can hold."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", who.name) or "none"


def _row(conn: Connection, name: str) -> Any:
    return conn.execute(select(federations).where(federations.c.name == name)).first()


def _is_member(conn: Connection, name: str, account_id: str) -> bool:
    query = select(federation_members.c.role).where(
        federation_members.c.federation == name, federation_members.c.account_id == account_id
    )
    return conn.scalar(query) is not None


def _pending(name: str, account_name: str) -> Any:
    return select(invitations).where(
        invitations.c.federation == name,
        invitations.c.invitee_name == account_name,
        invitations.c.status == InvitationStatus.PENDING,
    )


def _federation(row: Any, members: Sequence[Member] = ()) -> Federation:
    return Federation(row.name, row.description, row.archived_at is not None, members)


def _invitation(row: Any) -> Invitation:
    return Invitation(
        row.federation,
        row.inviter_id,
        row.inviter_name,
        row.invitee_name,
        InvitationStatus(row.status),
        row.created_at,
        row.changed_at,
    )
