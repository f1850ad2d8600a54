"""Nodes: both life cycles, liveness, adoption, one key for one node."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_world import World, world
from trellis_superlink.core.errors import (
    BadInterval,
    Forbidden,
    Held,
    KeyInUse,
    KeyInvalid,
    NotFound,
    RegistrationClosed,
    TryAgainLater,
    Unauthenticated,
)
from trellis_superlink.core.nodes import KEY_LIST, MAX_WAITING, NodeStatus, Unknown
from trellis_superlink.core.principals import NO_ACCOUNT, Principal
from trellis_wire.identity import generate_key, public_pem


def new_key() -> bytes:
    return public_pem(generate_key())


async def statuses(w: World) -> dict[int, NodeStatus]:
    return {node.node_id: node.status for node in await w.core.nodes.list(NO_ACCOUNT)}


async def test_the_life_of_a_new_node(w: World) -> None:
    key = new_key()
    node_id = await w.core.nodes.register(key)
    assert node_id > 1
    assert await w.core.nodes.register(key) == node_id
    assert await statuses(w) == {node_id: NodeStatus.REGISTERED}
    assert await w.core.nodes.activate(key, 30.0) == node_id
    assert await statuses(w) == {node_id: NodeStatus.ONLINE}
    who = await w.core.nodes.authenticate(node_id, key)
    await w.core.nodes.deactivate(who)
    assert await statuses(w) == {node_id: NodeStatus.OFFLINE}
    w.core.nodes.heartbeat(who, 30.0)  # a straggler
    assert await statuses(w) == {node_id: NodeStatus.OFFLINE}
    await w.core.nodes.unregister(who, node_id)
    assert await statuses(w) == {}
    with pytest.raises(Unauthenticated):
        await w.core.nodes.authenticate(node_id, key)
    assert await w.core.nodes.register(key) != node_id


async def test_the_life_of_an_old_node(w: World) -> None:
    key = new_key()
    node_id = await w.core.nodes.create(key, 30.0)
    assert await w.core.nodes.create(key, 30.0) == node_id
    assert await statuses(w) == {node_id: NodeStatus.ONLINE}
    await w.core.nodes.delete(await w.core.nodes.authenticate(node_id, key))
    assert await statuses(w) == {}


async def test_silence_and_return(w: World) -> None:
    who = await w.node()
    w.forward(59)
    assert w.core.nodes.online(who.node_id)
    w.forward(2)
    await w.rest()
    assert await statuses(w) == {who.node_id: NodeStatus.OFFLINE}
    w.core.nodes.heartbeat(who, 40.0)
    assert await statuses(w) == {who.node_id: NodeStatus.ONLINE}
    w.forward(79)
    assert w.core.nodes.online(who.node_id)
    with pytest.raises(BadInterval):
        w.core.nodes.heartbeat(who, 5.0)


async def test_restart_gives_time_to_come_back(w: World) -> None:
    there, gone = await w.node(), await w.node()
    w.forward(61)
    await w.rest()
    w.core.nodes.heartbeat(there, 30.0)
    await w.core.nodes.write_beats()
    await w.core.close()
    w.clock.ahead += 500  # the SuperLink was down for long
    w.core = await type(w.core).open(w.config, clock=w.clock)
    assert await statuses(w) == {there.node_id: NodeStatus.ONLINE, gone.node_id: NodeStatus.OFFLINE}
    for who in (there, gone):
        assert (await w.core.nodes.authenticate(who.node_id, w.keys[who.node_id])).node_id == who.node_id
    w.forward(61)
    await w.rest()
    assert set((await statuses(w)).values()) == {NodeStatus.OFFLINE}


async def test_an_unknown_pair_is_adopted(w: World) -> None:
    key = new_key()
    who = await w.core.nodes.authenticate(2**64 - 5, key)
    assert who.node_id == 2**64 - 5
    w.core.nodes.heartbeat(who)
    assert await statuses(w) == {who.node_id: NodeStatus.ONLINE}
    await w.reopen()
    assert (await w.core.nodes.authenticate(who.node_id, key)).node_id == who.node_id
    with pytest.raises(Unauthenticated):
        await w.core.nodes.authenticate(who.node_id, new_key())
    with pytest.raises(Unauthenticated):
        await w.core.nodes.authenticate(77, key)
    for node_id in (0, 1):
        with pytest.raises(Unauthenticated):
            await w.core.nodes.authenticate(node_id, new_key())


async def test_the_operator_registers(tmp_path: Path) -> None:
    async with world(tmp_path, unknown_nodes=Unknown.REFUSE) as w:
        key = new_key()
        node_id = await w.core.nodes.enrol(NO_ACCOUNT, key, name="Berlin")
        with pytest.raises(KeyInUse):
            await w.core.nodes.enrol(NO_ACCOUNT, key)
        with pytest.raises(KeyInvalid):
            await w.core.nodes.enrol(NO_ACCOUNT, b"no key")
        with pytest.raises(RegistrationClosed):
            await w.core.nodes.register(new_key())
        with pytest.raises(RegistrationClosed):
            await w.core.nodes.create(new_key(), 30.0)
        with pytest.raises(NotFound):
            await w.core.nodes.activate(new_key(), 30.0)
        with pytest.raises(Unauthenticated):
            await w.core.nodes.authenticate(55, new_key())
        assert await w.core.nodes.activate(key, 30.0) == node_id
        who = await w.core.nodes.authenticate(node_id, key)
        assert who.name == "Berlin"
        with pytest.raises(RegistrationClosed):
            await w.core.nodes.unregister(who, node_id)
        await w.core.nodes.delete(who)
        assert await statuses(w) == {node_id: NodeStatus.OFFLINE}
        assert await w.core.nodes.create(key, 30.0) == node_id
        await w.core.nodes.unregister(NO_ACCOUNT, node_id)
        with pytest.raises(NotFound):
            await w.core.nodes.unregister(NO_ACCOUNT, node_id)


OPERATOR = Principal.account("u-1", "olga")


async def test_a_stranger_waits_until_it_is_approved(tmp_path: Path) -> None:
    """Of both life cycles, also one that the database has lost; and over a restart."""
    async with world(tmp_path, unknown_nodes=Unknown.HOLD) as w:
        nodes, key, old, lost = w.core.nodes, new_key(), new_key(), new_key()
        node_id = await nodes.register(key)
        assert await nodes.register(key) == node_id
        for _ in range(2):
            with pytest.raises(Held):
                await nodes.activate(key, 30.0)
            with pytest.raises(Held):
                await nodes.create(old, 30.0)
            with pytest.raises(Held):
                await nodes.authenticate(77, lost)
        shown = await nodes.list(NO_ACCOUNT)
        assert [(node.held, node.status) for node in shown] == [(True, NodeStatus.REGISTERED)] * 3
        assert nodes.online_count == 0
        await w.reopen()
        nodes = w.core.nodes
        with pytest.raises(Held):
            await nodes.authenticate(node_id, key)

        assert await nodes.enrol(OPERATOR, key) == node_id
        assert await nodes.enrol(OPERATOR, lost, name="Bern") == 77
        with pytest.raises(KeyInUse):
            await nodes.enrol(OPERATOR, key)
        assert await nodes.register(key) == node_id
        assert await nodes.activate(key, 30.0) == node_id
        assert (await nodes.authenticate(77, lost)).name == "Bern"
        [approved] = [node for node in await nodes.list(NO_ACCOUNT) if node.node_id == node_id]
        assert (approved.held, approved.owner_name) == (False, "olga")
        await w.reopen()
        await w.core.nodes.authenticate(node_id, key)
        await w.core.nodes.unregister(OPERATOR, node_id)
        with pytest.raises(Unauthenticated):
            await w.core.nodes.authenticate(node_id, key)


async def test_only_so_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis_superlink.core.nodes.MAX_WAITING", 3)
    assert MAX_WAITING > 100
    async with world(tmp_path, unknown_nodes=Unknown.HOLD) as w:
        first = new_key()
        await w.core.nodes.register(first)
        for _ in range(2):
            await w.core.nodes.register(new_key())
        with pytest.raises(TryAgainLater):
            await w.core.nodes.register(new_key())
        await w.core.nodes.enrol(OPERATOR, first)
        await w.core.nodes.register(new_key())


@pytest.mark.parametrize("unknown", [Unknown.HOLD, Unknown.REFUSE])
async def test_who_came_while_the_door_was_open(unknown: Unknown, tmp_path: Path) -> None:
    key = new_key()
    async with world(tmp_path) as w:
        node_id = await w.core.nodes.create(key, 30.0)
    async with world(tmp_path, unknown_nodes=unknown) as w:
        problem = Held if unknown is Unknown.HOLD else Unauthenticated
        with pytest.raises(problem):
            await w.core.nodes.authenticate(node_id, key)
        with pytest.raises(problem):
            await w.core.nodes.activate(key, 30.0)
        assert w.core.nodes.online_count == 0
        assert await w.core.nodes.enrol(OPERATOR, key) == node_id
        assert await w.core.nodes.activate(key, 30.0) == node_id


async def test_a_list_of_keys(tmp_path: Path) -> None:
    """Who is on it may join, who is no longer may not; those that were registered one by one are left alone."""
    async with world(tmp_path, unknown_nodes=Unknown.REFUSE) as w:
        stays, goes, comes, own = new_key(), new_key(), new_key(), new_key()
        mine = await w.core.nodes.enrol(OPERATOR, own)
        await w.core.nodes.keep_listed([stays, goes, own])
        first = await w.core.nodes.create(stays, 30.0)
        left = await w.core.nodes.create(goes, 30.0)
        await w.core.nodes.keep_listed([stays, comes])
        assert await w.core.nodes.create(stays, 30.0) == first
        await w.core.nodes.create(comes, 30.0)
        with pytest.raises(Unauthenticated):
            await w.core.nodes.authenticate(left, goes)
        with pytest.raises(RegistrationClosed):
            await w.core.nodes.create(goes, 30.0)
        assert (await w.core.nodes.authenticate(mine, own)).node_id == mine
        owners = [node.owner_id for node in await w.core.nodes.list(NO_ACCOUNT)]
        assert sorted(owners) == sorted([KEY_LIST.id, KEY_LIST.id, "u-1"])
        with pytest.raises(KeyInvalid):
            await w.core.nodes.keep_listed([b"no key"])


async def test_who_may_ask(w: World) -> None:
    node = await w.node()
    who, _work, _stay = await w.running()
    assert [each.node_id for each in await w.core.nodes.available(who)] == [node.node_id]
    for caller in (node, NO_ACCOUNT):
        with pytest.raises(Forbidden):
            await w.core.nodes.available(caller)
    with pytest.raises(Forbidden):
        await w.core.nodes.list(node)
    other = await w.node()
    with pytest.raises(Forbidden):
        await w.core.nodes.unregister(node, other.node_id)
    with pytest.raises(Forbidden):
        await w.core.nodes.enrol(Principal.node(4), new_key())
