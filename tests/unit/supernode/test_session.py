"""Membership: joining, outages, a SuperLink that forgets or refuses this node, and an orderly end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from node_world import NODE_ID, RUN, settings_of, world
from trellis_kit.lifecycle import Fatal
from trellis_kit.retry import Backoff
from trellis_supernode import session
from trellis_supernode.main import serve
from trellis_wire.identity import generate_key, private_pem, public_pem
from waits import until


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trouble with membership is retried without the seconds that operators' logs are spared."""
    monkeypatch.setattr(session, "Backoff", lambda initial, cap: Backoff(initial=initial / 50, cap=cap / 50))


async def test_a_node_registers_itself_once_and_keeps_its_identity(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        async with w.node():
            await until(lambda: w.link.online, "the node")
            await until(lambda: w.link.called("SendNodeHeartbeat"), "a heartbeat at once")
        assert not w.link.online  # it said goodbye
        first = w.link.called("ActivateNode")[0]
        assert first.heartbeat_interval == 30
        assert w.link.called("SendNodeHeartbeat")[0].node.node_id == NODE_ID
        async with w.node():  # RegisterNode is refused now, as stock refuses a key that it knows
            await until(lambda: w.link.online, "the node")
        assert [one.public_key for one in w.link.called("ActivateNode")] == [first.public_key] * 2
        assert (tmp_path / "state" / "node.key").stat().st_mode & 0o777 == 0o600
        assert not w.link.called("UnregisterNode")


async def test_an_operators_key_is_not_registered_by_the_node(tmp_path: Path) -> None:
    key = generate_key("P-384")
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    async with world(tmp_path) as w:
        w.link.known_key = public_pem(key)
        async with w.node(auth_supernode_private_key=tmp_path / "key.pem"):
            await until(lambda: w.link.online, "the node")
        assert not w.link.called("RegisterNode")
        assert not (tmp_path / "state" / "node.key").exists()


async def test_a_node_that_is_not_let_in_says_why_and_comes_in_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w:
        w.link.registration = False
        async with w.node():
            await until(lambda: len(w.link.called("ActivateNode")) > 3, "tries")
            told = [record.getMessage() for record in caplog.records if "supernode register" in record.getMessage()]
            assert len(told) == 1
            w.link.failures["ActivateNode"] = [grpc.StatusCode.UNAUTHENTICATED]
            await until(lambda: not w.link.failures["ActivateNode"], "the refusal")
            w.link.known_key = w.link.called("ActivateNode")[0].public_key
            await until(lambda: w.link.online, "the node")
        assert any("clocks" in record.getMessage() for record in caplog.records)


async def test_another_port_than_the_fleets_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path) as w:
        w.link.failures["ActivateNode"] = [grpc.StatusCode.UNIMPLEMENTED]
        async with w.node():
            await until(lambda: w.link.online, "the node, which tries again")
        assert any("9092" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("method", ["SendNodeHeartbeat", "PullMessages"])
@pytest.mark.parametrize("status", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNKNOWN])
async def test_a_superlink_that_forgot_the_node_is_joined_again(
    tmp_path: Path, method: str, status: grpc.StatusCode
) -> None:
    async with world(tmp_path) as w:
        w.link.failures[method] = [status]  # stock 1.24: UNKNOWN "Node ID ... not found"
        async with w.node():
            await until(lambda: len(w.link.called("ActivateNode")) == 2, "the second time")
            hand = await w.hand()
            instruction = await w.link.instruct()
            await hand.finish(await hand.work())
            await w.answered(instruction)


async def test_outages_of_the_superlink_are_waited_out(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.link.stop()
        async with w.node():
            hand = await w.hand()  # executors need no SuperLink to attend
            await w.link.start()
            instruction = await w.link.instruct()
            work = await hand.work()
            await w.link.stop()
            await hand.finish(work, count=1)  # kept, as the SuperLink is away
            assert not w.link.replies
            await w.link.start()
            await w.answered(instruction)
            second = await w.link.instruct()
            await hand.finish(await hand.work())
            await w.answered(second)
            assert set(w.link.pushes.values()) == {1}


async def test_a_node_may_be_told_to_give_up(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.link.stop()
        with pytest.raises(Fatal, match="could not be reached 3 times"):
            async with w.node(max_retries=2):
                await asyncio.wait([w.task], timeout=10)
        await w.link.start()


async def test_stock_superlinks_are_not_asked_all_the_time(tmp_path: Path) -> None:
    async with world(tmp_path, inline=False) as w, w.node():
        await until(lambda: len(w.link.called("PullMessages")) >= 3, "pulls")
        assert len(w.link.called("PullMessages")) < 50
        assert not any(request.trellis_objects for request in w.link.called("PushMessages"))


async def test_stopping_waits_for_what_is_worked_on(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node() as stop:
        hand = await w.hand(slots=2)
        instruction = await w.link.instruct()
        work = await hand.work()
        waiting = await w.link.instruct()
        await until(lambda: waiting.id in w.link.called("PullMessages")[-1].trellis_working_on, "it to be here")
        stop.request()
        await asyncio.sleep(0)
        await hand.finish(work, count=5)
        await asyncio.wait([w.task], timeout=10)
        w.task.result()
        assert len(w.link.answers(instruction)) == 1
        assert not w.link.online
        assert hand.orders.empty()  # nothing new was begun

        async with w.node():
            await hand.attend()
            work = await hand.work()
            assert (await hand.read(work))[0].message_id == waiting.id
            assert await hand.state(work) == 5
            await hand.finish(work)
            await w.answered(waiting)
            assert work.run.run_id == RUN


async def test_two_nodes_cannot_share_a_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis_supernode.ledger.LOCK_SECONDS", 0.1)
    async with world(tmp_path) as w, w.node() as stop:
        await until(lambda: w.link.online, "the first")
        with pytest.raises(Fatal, match="another SuperNode"):
            await serve(settings_of(tmp_path / "state", superlink=w.link.address), stop)
