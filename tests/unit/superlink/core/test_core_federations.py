"""Federations: who may run on which nodes."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path

import pytest
from core_world import World, instruct, records, world
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
from trellis_superlink.core.executors import Work
from trellis_superlink.core.federations import InvitationStatus, Role
from trellis_superlink.core.permissions import OF_ACCOUNTS, Permission
from trellis_superlink.core.principals import DEFAULT_FEDERATION, NO_ACCOUNT, Principal

OLGA = Principal.account("o-1", "olga", OF_ACCOUNTS)
USER = frozenset({Permission.FEDERATIONS_SEE, Permission.RUNS_START, Permission.RUNS_SEE})
BOB = Principal.account("b-1", "bob", USER)
EVE = Principal.account("e-1", "eve", USER)
OURS = "@olga/ours"


async def hosted(w: World, who: Principal, federation: str) -> Principal:
    """The executor of a new run in the federation."""
    stay = await w.attend(executor_id=f"e-{who.id}-{federation}", slots=1)
    run = await w.core.runs.start(who, w.fab, override_config={}, federation=federation)
    work = await anext(stay.orders())
    assert isinstance(work, Work)
    assert work.run.run_id == run.run_id
    executor = await w.core.runs.authenticate(work.token)
    await w.core.runs.running(executor)
    return executor


async def test_a_node_works_for_the_federations_that_hold_it(w: World, tmp_path: Path) -> None:
    await w.core.federations.create(OLGA, OURS)
    held, free = await w.node(), await w.node()
    await w.core.federations.add_node(OLGA, OURS, held.node_id)
    inside, outside = await hosted(w, OLGA, OURS), await hosted(w, EVE, DEFAULT_FEDERATION)
    for executor, reached, other in ((inside, held, free), (outside, free, held)):
        assert [node.node_id for node in await w.core.nodes.available(executor)] == [reached.node_id]
        letters = [instruct(executor.run, node.node_id, records()) for node in (reached, other)]
        pushed = await w.core.mail.push_instructions(executor, [one.full() for one in letters])
        assert pushed.refusals[0] == ""
        assert "does not have" in pushed.refusals[1]
        [parcel] = await w.pull(reached)
        assert parcel.tree.object_id == letters[0].id
    assert {node.node_id for node in await w.core.nodes.list(OLGA, OURS)} == {held.node_id}
    assert {node.node_id for node in await w.core.nodes.list(OLGA)} == {held.node_id, free.node_id}
    await w.core.federations.remove_node(OLGA, OURS, held.node_id)
    assert len(await w.core.nodes.available(outside)) == 2
    assert not await w.core.nodes.available(inside)


async def test_bindings_outlive_the_process_and_the_federation(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        node = await w.node()
        await w.core.federations.create(OLGA, OURS)
        await w.core.federations.add_node(OLGA, OURS, node.node_id)
        await w.core.federations.archive(OLGA, OURS)
    async with world(tmp_path) as w:
        assert w.core.federations.holds(OURS, node.node_id)
        assert not w.core.federations.holds(DEFAULT_FEDERATION, node.node_id)
        with pytest.raises(NoFederation):
            await w.core.runs.start(OLGA, w.fab, override_config={}, federation=OURS)
        await w.core.nodes.unregister(OLGA, node.node_id)
        assert w.core.federations.holds(DEFAULT_FEDERATION, node.node_id)


async def test_an_invitation_makes_a_member(w: World) -> None:
    f = w.core.federations
    await f.create(OLGA, "ours", "what it is for")
    with pytest.raises(NoFederation):
        await w.core.runs.start(BOB, w.fab, override_config={}, federation=OURS)
    await f.invite(OLGA, OURS, "bob")
    with pytest.raises(Refused, match="already"):
        await f.invite(OLGA, OURS, "bob")
    _, [received] = await f.invitations(BOB)
    assert (received.federation, received.inviter_name, received.status) == (OURS, "olga", InvitationStatus.PENDING)
    with pytest.raises(NoInvitation):
        await f.answer(EVE, OURS, accept=True)
    await f.answer(BOB, OURS, accept=True)
    with pytest.raises(NoInvitation):
        await f.answer(BOB, OURS, accept=True)
    with pytest.raises(MemberAlready):
        await f.invite(OLGA, OURS, "bob")
    found = await f.get(BOB, OURS)
    assert [(one.account_name, one.role) for one in found.members] == [("olga", Role.OWNER), ("bob", Role.MEMBER)]
    run = await w.core.runs.start(BOB, w.fab, override_config={}, federation=OURS)
    assert run.federation == OURS
    assert [one.run_id for one in await w.core.runs.list(BOB, federation=OURS)] == [run.run_id]
    assert await w.core.runs.list(BOB, federation=DEFAULT_FEDERATION) == []
    await f.remove_account(BOB, OURS, None)
    with pytest.raises(NoFederation):
        await w.core.runs.start(BOB, w.fab, override_config={}, federation=OURS)
    assert [one.name for one in await f.list(BOB)] == [DEFAULT_FEDERATION]
    [sent], _ = await f.invitations(OLGA)
    assert sent.status is InvitationStatus.ACCEPTED


async def test_invitations_are_refused_and_revoked(w: World) -> None:
    f = w.core.federations
    await f.create(OLGA, OURS)
    await f.invite(OLGA, OURS, "bob")
    await f.answer(BOB, OURS, accept=False)
    await f.invite(OLGA, OURS, "bob")
    await f.revoke(OLGA, OURS, "bob")
    with pytest.raises(NoInvitation):
        await f.answer(BOB, OURS, accept=True)
    sent, _ = await f.invitations(OLGA)
    assert [one.status for one in sent] == [InvitationStatus.REJECTED, InvitationStatus.REVOKED]
    await f.invite(OLGA, OURS, "bob")
    await f.archive(OLGA, OURS)
    with pytest.raises(NoInvitation):
        await f.answer(BOB, OURS, accept=True)


async def test_a_federation_is_nothing_to_strangers(w: World) -> None:
    f = w.core.federations
    await f.create(OLGA, OURS)
    node = await w.node()
    attempts: list[Awaitable[object]] = [
        f.get(EVE, OURS),
        f.archive(EVE, OURS),
        f.invite(EVE, OURS, "eve"),
        f.revoke(EVE, OURS, "bob"),
        f.add_node(EVE, OURS, node.node_id),
        f.remove_node(EVE, OURS, node.node_id),
        f.remove_account(EVE, OURS, "olga"),
        f.remove_account(EVE, OURS, None),
        w.core.runs.start(EVE, w.fab, override_config={}, federation=OURS),
    ]
    told = set()
    for attempt in attempts:
        with pytest.raises(NoFederation) as refused:
            await attempt
        told.add(str(refused.value))
    with pytest.raises(NoFederation) as missing:
        await f.get(EVE, "@olga/none")
    assert told == {str(missing.value).replace("none", "ours")}
    assert [one.name for one in await f.list(EVE)] == [DEFAULT_FEDERATION]


async def test_members_do_not_remove_each_other_and_the_owner_stays(w: World) -> None:
    f = w.core.federations
    await f.create(OLGA, OURS)
    for who in (BOB, EVE):
        await f.invite(OLGA, OURS, who.name)
        await f.answer(who, OURS, accept=True)
    with pytest.raises(Forbidden):
        await f.remove_account(BOB, OURS, "eve")
    with pytest.raises(Refused, match="owner"):
        await f.remove_account(OLGA, OURS, None)
    await f.remove_account(OLGA, OURS, "eve")
    with pytest.raises(NoMember):
        await f.remove_account(OLGA, OURS, "eve")


@pytest.mark.parametrize("name", ["", "@bob/x", "@olga/", "@olga/a b", "a/b", "@olga/" + "x" * 101, "@olga/\u00e4"])
async def test_names_that_no_federation_has(name: str, w: World) -> None:
    with pytest.raises(BadFederationName, match="@olga/NAME"):
        await w.core.federations.create(OLGA, name)


async def test_what_is_refused_about_federations(w: World) -> None:
    f = w.core.federations
    await f.create(OLGA, OURS)
    with pytest.raises(FederationExists):
        await f.create(OLGA, OURS)
    with pytest.raises(Refused, match="printable"):
        await f.create(OLGA, "@olga/two", "a\nb")
    with pytest.raises(NotFound):
        await f.add_node(OLGA, OURS, 77)
    node = await w.node()
    with pytest.raises(NotFound):
        await f.remove_node(OLGA, OURS, node.node_id)
    await f.add_node(OLGA, OURS, node.node_id)
    with pytest.raises(NodeAlready):
        await f.add_node(OLGA, OURS, node.node_id)
    for name in ("", "x" * 201, "a\nb"):
        with pytest.raises(Refused):
            await f.invite(OLGA, OURS, name)
    with pytest.raises(Refused, match="default"):
        await f.archive(OLGA, DEFAULT_FEDERATION)
    with pytest.raises(Forbidden):
        await f.create(Principal.node(node.node_id), "@a/b")
    await f.archive(OLGA, OURS)
    with pytest.raises(Refused, match="archived"):
        await f.add_node(OLGA, OURS, node.node_id)


async def test_an_account_whose_name_a_federation_cannot_have(w: World) -> None:
    who = Principal.account("m-1", "mia@example.org", OF_ACCOUNTS)
    assert (await w.core.federations.create(who, "x")).name == "@mia-example-org/x"
    assert (await w.core.federations.create(NO_ACCOUNT, "x")).name == "@none/x"
