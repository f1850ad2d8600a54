"""The SuperNode at work: instructions in, executors fed, replies out; all of it over real gRPC."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import grpc
import pytest
from node_world import NODE_ID, PYPROJECT, RUN, Hand, Link, model, reply_to, token, world
from trellis_kit.isolation import ProcessIsolation
from trellis_supernode import appio, desk, main
from trellis_wire import config
from trellis_wire.fab import fab_hash
from trellis_wire.messages import ErrorCode, MessageError
from trellis_wire.objects import object_id
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import message_pb2
from waits import until


@pytest.mark.parametrize("inline", [True, False], ids=["own SuperLink", "stock SuperLink"])
async def test_an_instruction_is_worked_on_and_its_reply_delivered(tmp_path: Path, inline: bool) -> None:
    async with world(tmp_path, inline=inline) as w, w.node(node_config="partition-id=1"):
        hand = await w.hand()
        instruction = await w.link.instruct(model(b"m" * 1000, 41))

        work = await hand.work()
        metadata, records = await hand.read(work)
        assert metadata.message_id == instruction.id
        assert dict(records["config"].items) == {"n": 41}
        assert (work.run.run_id, work.run.node_id) == (RUN, NODE_ID)
        assert config.from_appio(work.run.override_config) == {"rounds": 7}
        assert config.from_appio(work.run.node_config) == {"partition-id": 1}
        assert not work.HasField("state")

        await hand.finish(work, model(b"r" * 100, 42))
        answer = await w.answered(instruction)
        assert dict(w.link.records(answer)["config"].items) == {"n": 42}
        assert w.link.called("PushMessages")[0].clientapp_runtime_list == [1.5]
        if inline:
            assert not w.link.called("PullObject")
            assert not w.link.called("PushObject")
        else:
            assert len(w.link.called("PullObject")) == len(instruction.tree.post_order())
            await until(lambda: instruction.confirmed, "the confirmation")


async def test_large_models_travel_in_parts_and_shared_objects_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        data = bytes(range(256)) * (12 << 12)  # 12 MiB
        first = await w.link.instruct(model(data, 1))
        work = await hand.work()
        _, records = await hand.read(work)
        assert bytes(records["arrays"].items["w"].data).endswith(data)  # type: ignore[union-attr]
        assert await hand.finish(work, model(data[::-1], 2))
        answer = await w.answered(first)
        assert bytes(w.link.records(answer)["arrays"].items["w"].data).endswith(data[::-1])  # type: ignore[union-attr]

        pulled, pushed = len(w.link.called("PullObject")), len(w.link.called("PushObject"))
        assert (pulled, pushed) == (3, 3)
        second = await w.link.instruct(model(data, 2))  # the same arrays
        work = await hand.work()
        await hand.read(work)
        await hand.finish(work, model(data[::-1], 3))
        await w.answered(second)
        assert (len(w.link.called("PullObject")), len(w.link.called("PushObject"))) == (pulled, pushed)


# ---- one context for a run -------------------------------------------------------------------------------------------


async def test_messages_of_a_run_share_its_context_one_after_the_other(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hands = [await w.hand("one"), await w.hand("two")]
        instructions = [await w.link.instruct() for _ in range(4)]
        other = await w.link.instruct(run_id=5)

        async def work_on(hand: Hand, seen: list[int]) -> None:
            while True:
                work = await hand.work()
                if work.run.run_id == 5:
                    await w.answered(instructions[0])  # another run's message goes on beside this run's
                    await hand.finish(work)
                    continue
                count = await hand.state(work) or 0
                seen.append(count)
                await hand.finish(work, count=count + 1)

        seen: list[int] = []
        tasks = [asyncio.create_task(work_on(hand, seen)) for hand in hands]
        for instruction in [*instructions, other]:
            await w.answered(instruction)
        for task in tasks:
            task.cancel()
        assert seen == [0, 1, 2, 3]


async def test_a_reply_without_state_leaves_the_state(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        for counts, expected in ((3, None), (None, 3), (None, 3)):
            await w.link.instruct()
            work = await hand.work()
            assert await hand.state(work) == expected
            await hand.finish(work, count=counts)


# ---- executors that go away ------------------------------------------------------------------------------------------


async def test_a_lost_executors_task_is_handed_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "RECONNECT_SECONDS", 0.2)
    async with world(tmp_path) as w, w.node():
        first = await w.hand("first")
        instruction = await w.link.instruct()
        await first.work()
        second = await w.hand("second")
        await first.vanish()
        work = await second.work()
        await second.finish(work)
        await w.answered(instruction)


async def test_an_executor_that_comes_back_keeps_its_task(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        await hand.vanish()
        await hand.attend()
        await hand.finish(work)
        await w.answered(instruction)
        assert hand.orders.empty()


async def test_an_executor_that_forgot_its_task_gets_it_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        first = await hand.work()
        await hand.vanish()
        hand.holding.clear()
        await hand.attend()
        again = await hand.work()
        assert again.token == first.token
        await hand.finish(again)
        await w.answered(instruction)


async def test_a_task_whose_executors_keep_dying_is_answered_with_error_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "RECONNECT_SECONDS", 0.05)
    async with world(tmp_path) as w, w.node():
        instruction = await w.link.instruct()
        for number in range(3):
            hand = await w.hand(f"hand-{number}")
            await hand.work()
            await hand.vanish()
        answer = await w.answered(instruction)
        assert answer.error.code == ErrorCode.CLIENT_APP_CRASHED
        assert "3 times" in answer.error.reason
        assert answer.metadata.src_node_id == NODE_ID


async def test_a_silent_executor_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "RECONNECT_SECONDS", 0.0)
    monkeypatch.setattr(appio, "SILENCE", 0.3)
    async with world(tmp_path) as w, w.node():
        silent = await w.hand("silent")
        await w.link.instruct()
        await silent.work()
        assert silent.reading is not None
        await asyncio.wait_for(silent.reading, 10)
        monkeypatch.setattr(appio, "SILENCE", 30.0)
        other = await w.hand("other")
        await other.finish(await other.work())


async def test_work_handed_back_is_no_failure(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        instruction = await w.link.instruct()
        for number in range(4):
            hand = await w.hand(f"hand-{number}")
            work = await hand.work()
            await hand.report(free_slots=0)
            hand.holding.clear()
            await hand.report(handed_back=work.token)
        last = await w.hand("last")
        await last.finish(await last.work())
        assert not (await w.answered(instruction)).HasField("error")


async def test_an_executor_that_takes_no_more_gets_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        leaving, other = await w.hand("leaving", slots=3), await w.hand("other")
        await leaving.report(free_slots=0)
        await w.link.instruct(run_id=1)
        await other.work()
        waiting = await w.link.instruct(run_id=2)
        assert leaving.orders.empty()
        await leaving.report(free_slots=1)
        work = await leaving.work()
        assert work.run.run_id == 2
        await leaving.finish(work)
        await w.answered(waiting)


async def test_a_token_of_no_task_is_dropped_and_opens_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = Hand(w.appio)
        w.hands.append(hand)
        hand.holding = ["0" * 64]
        await hand.attend()
        order = await asyncio.wait_for(hand.orders.get(), 10)
        assert order.drop == "0" * 64
        metadata = (("trellis-token", "0" * 64),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await hand.stub.GetFab(appio_pb2.GetFabRequest(fab_hash=w.link.run_fab), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_capacity_is_what_executors_are_free_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand(slots=3)
        first = await w.link.instruct(run_id=1)
        await hand.work()
        await until(lambda: w.link.called("PullMessages")[-1].trellis_working_on == [first.id], "the next pull")
        assert w.link.called("PullMessages")[-1].trellis_capacity == 2
        second = await w.link.instruct(run_id=1)  # waits for the first: the third slot is not kept for it
        await until(lambda: w.link.called("PullMessages")[-1].trellis_working_on == [first.id, second.id], "the next")
        assert w.link.called("PullMessages")[-1].trellis_capacity == 2
        assert w.link.called("PullMessages")[-1].trellis_known_runs == [1]
        for run_id in (2, 3):
            await w.link.instruct(run_id=run_id)
            other = await hand.work()
        pulls = len(w.link.called("PullMessages"))
        fourth = await w.link.instruct(run_id=4)
        await hand.finish(other)  # one slot is free: one pull for it, and there was none before
        assert (await hand.read(await hand.work()))[0].message_id == fourth.id
        assert len(w.link.called("PullMessages")) == pulls + 1


# ---- runs that end ---------------------------------------------------------------------------------------------------


async def test_a_run_that_is_over_is_stopped_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis_supernode.session.WATCH_SECONDS", 0.1)
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        await w.link.instruct(model(b"m" * 200_000))
        await hand.finish(await hand.work(), count=1)
        await w.link.instruct()
        work = await hand.work()
        objects = tmp_path / "state" / "objects" / str(RUN)
        assert list(objects.iterdir())
        w.link.finished.add(RUN)
        order = await asyncio.wait_for(hand.orders.get(), 10)
        assert order.stop == work.token
        await until(lambda: not objects.exists(), "the objects to go")
        assert not list((tmp_path / "state" / "fabs").iterdir())
        assert not (await hand.stub.FinishTask(appio_pb2.FinishTaskRequest(), metadata=token(work))).missing_objects


async def test_an_idle_run_that_ended_is_forgotten_with_the_next_pull(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        first = await w.link.instruct(model(b"m" * 200_000))
        await hand.finish(await hand.work(), count=1)
        await w.answered(first)
        w.link.finished.add(RUN)
        await w.link.instruct(run_id=2)  # lets the held pull return
        await hand.finish(await hand.work())
        await until(lambda: not (tmp_path / "state" / "objects" / str(RUN)).exists(), "the objects to go")


async def test_replies_of_a_run_that_is_over_are_dropped(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        w.link.finished.add(RUN)
        await hand.finish(work)
        await until(lambda: w.link.called("PushMessages"), "the reply to be offered")
        again = await w.link.instruct(run_id=2)
        await hand.finish(await hand.work())
        await w.answered(again)
        assert not w.link.answers(instruction)
        assert len(w.link.called("PushMessages")) == 2


# ---- instructions that cannot be worked on ---------------------------------------------------------------------------


async def test_expired_instructions_are_not_run(tmp_path: Path) -> None:
    async with world(tmp_path, inline=False) as w, w.node():
        instruction = await w.link.instruct(ttl=0.6)
        await until(lambda: instruction.confirmed, "the confirmation")
        await asyncio.sleep(max(0.0, instruction.metadata.expires_at - time.time()) + 0.01)
        hand = await w.hand()
        later = await w.link.instruct()
        work = await hand.work()
        assert (await hand.read(work))[0].message_id == later.id


async def test_an_unusable_fab_is_error_7(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        w.link.run_fab = fab_hash(b"no zip")
        w.link.fabs[w.link.run_fab] = b"no zip"
        answer = await w.answered(await w.link.instruct())
        assert answer.error.code == ErrorCode.INVALID_FAB
        second = await w.answered(await w.link.instruct())
        assert second.error.code == ErrorCode.INVALID_FAB


@pytest.mark.parametrize("name", ["", "../../../etc/passwd", "0" * 64])
async def test_a_fab_that_is_not_what_its_hash_says_is_error_7(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as w, w.node():
        w.link.fabs[name] = w.link.fabs[w.link.run_fab]
        w.link.run_fab = name
        answer = await w.answered(await w.link.instruct())
        assert answer.error.code == ErrorCode.INVALID_FAB


async def test_the_fab_is_handed_to_its_runs_tasks_only(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        await w.link.instruct()
        work = await hand.work()
        assert work.run.fab_hash == w.link.run_fab
        got = await hand.stub.GetFab(appio_pb2.GetFabRequest(fab_hash=work.run.fab_hash), metadata=token(work))
        assert got.content == w.link.fabs[w.link.run_fab]
        assert PYPROJECT.strip().splitlines()[-1].encode() in got.content or got.content.startswith(b"PK")
        for other in ("0" * 64, "../node.key"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await hand.stub.GetFab(appio_pb2.GetFabRequest(fab_hash=other), metadata=token(work))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_objects_that_are_gone_are_error_3_and_late_ones_are_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path, inline=False) as w, w.node():
        hand = await w.hand()
        w.link.late = {"all"}
        late = await w.link.instruct(model(b"late" * 10))
        missing = late.tree.post_order()[0]
        assert not w.link.called("PullObject") or missing
        await hand.finish(await hand.work())
        await w.answered(late)

        gone = await w.link.instruct(model(b"gone" * 10))
        w.link.late = set(gone.tree.post_order())
        await until(lambda: len([r for r in w.link.called("PullObject") if r.object_id in w.link.late]) > 3, "tries")
        del w.link.objects[gone.tree.post_order()[0]]
        w.link.late = set()
        answer = await w.answered(gone)
        assert answer.error.code == ErrorCode.MESSAGE_UNAVAILABLE


async def test_a_damaged_object_is_not_handed_on(tmp_path: Path) -> None:
    async with world(tmp_path, inline=False) as w, w.node():
        instruction = await w.link.instruct(model(b"m" * 100_000))
        array = instruction.tree.post_order()[0]
        w.link.objects[array] = w.link.objects[array][:-1] + b"X"
        answer = await w.answered(instruction)
        assert answer.error.code == ErrorCode.MESSAGE_UNAVAILABLE


async def test_malformed_answers_change_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        bad = await w.link.instruct()
        good = w.link.instructions.pop(bad.id)
        loop = message_pb2.ObjectTree(object_id=bad.id, children=[message_pb2.ObjectTree(object_id=bad.id)])

        class Cyclic(type(bad.tree)):  # type: ignore[misc]
            def to_edge(self) -> message_pb2.ObjectTree:
                return loop

        w.link.instructions["bad"] = type(good)(good.metadata, Cyclic(good.tree.object_id, good.tree.children))
        async with w.link.news:
            w.link.news.notify_all()
        await until(lambda: w.link.instructions["bad"].delivered, "the malformed one to be delivered")
        del w.link.instructions["bad"]
        await w.link.instruct(run_id=3)
        work = await hand.work()
        assert work.run.run_id == 3


# ---- replies ---------------------------------------------------------------------------------------------------------


async def test_replies_that_are_none_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        metadata, _ = await hand.read(work)

        async def refused(request: appio_pb2.FinishTaskRequest) -> str:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await hand.stub.FinishTask(request, metadata=token(work))
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            return str(error.value.details())

        await refused(appio_pb2.FinishTaskRequest())
        request, _ = reply_to(metadata, model(b"x"), None)
        del request.reply.objects[:]
        assert "root" in await refused(request)
        request, _ = reply_to(metadata, model(b"x"), None)
        request.reply.objects[0].content += b"!"
        await refused(request)
        request, _ = reply_to(metadata, model(b"x"), None)
        del request.reply.tree.children[:]
        await refused(request)
        other, _ = await w.link.instruct(run_id=2), None
        request, _ = reply_to(other.metadata, model(b"x"), None)
        assert "this instruction" in await refused(request)

        await hand.finish(work)
        await w.answered(instruction)


async def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        await w.link.instruct()
        work = await hand.work()
        big = b"ArrayChunk  200000\x00" + b"a" * 200_000
        size = len(big)

        async def push(*parts: tuple[str, int, int, bytes]) -> grpc.StatusCode:
            sent = [appio_pb2.ObjectPart(object_id=a, offset=b, size=c, data=d) for a, b, c, d in parts]
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await hand.stub.PushObjects(iter(sent), metadata=token(work))
            return error.value.code()

        one = object_id(big)
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        assert await push((one, 0, size, big[:100_000]), (one, 100_001, size, big[100_000:])) is invalid
        assert await push((one, 0, size, big[:100_000]), (object_id(b"x"), 0, size, big)) is invalid
        assert await push((one, 0, size, big[:-1] + b"b")) is invalid
        assert await push((one, 0, size - 1, big)) is invalid
        assert not list((tmp_path / "state" / "objects").rglob("*.part"))


async def test_an_error_of_the_app_is_the_replys_error(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        metadata, _ = await hand.read(work)
        request, _ = reply_to(metadata, {}, None, MessageError(ErrorCode.CLIENT_APP_RAISED, "boom"))
        for _ in range(2):  # an answer that got lost is asked for again
            assert not (await hand.stub.FinishTask(request, metadata=token(work))).missing_objects
        answer = await w.answered(instruction)
        assert (answer.error.code, answer.error.reason) == (2, "boom")
        assert len(w.link.called("PushMessages")) == 1


async def test_a_push_that_fails_for_a_moment_is_repeated_and_one_refused_for_good_is_not(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        w.link.failures["PushMessages"] = [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE]
        await hand.finish(await hand.work())
        await w.answered(instruction)

        w.link.failures["PushMessages"] = [grpc.StatusCode.INVALID_ARGUMENT]
        dropped = await w.link.instruct()
        await hand.finish(await hand.work())
        await until(lambda: not w.link.failures["PushMessages"], "the refusal")
        await w.link.instruct(run_id=2)
        await hand.finish(await hand.work())
        assert not w.link.answers(dropped)


# ---- logs and strangers ----------------------------------------------------------------------------------------------


async def test_lines_of_apps_are_logged_once_with_their_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        await w.link.instruct()
        work = await hand.work()
        request = appio_pb2.PushLogsRequest(lines=[appio_pb2.LogLine(level="OUT", text="hello app\n")], sequence=1)
        with caplog.at_level("INFO", "app"):
            for _ in range(2):
                await hand.stub.PushLogs(request, metadata=token(work))
            await hand.finish(work)
            request.sequence, request.lines[0].text = 2, "last words"
            await hand.stub.PushLogs(request, metadata=token(work))
        assert [record.getMessage() for record in caplog.records if record.name == "app"] == ["hello app", "last words"]
        with pytest.raises(grpc.aio.AioRpcError):
            await hand.stub.PushLogs(request, metadata=(("trellis-token", "no"),))


async def test_executors_show_the_join_token(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node(join_token="s3cret"):
        for wrong in (None, "other"):
            stranger = Hand(w.appio, join_token=wrong)
            w.hands.append(stranger)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stranger.attend()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "--join-token-file" in str(refused.value.details())
        hand = await w.hand(join_token="s3cret")
        await w.link.instruct()
        await hand.finish(await hand.work())


@pytest.mark.parametrize("method", ["ClientAppIo/PullClientAppInputs", "Runtime/PullPendingTasks"])
async def test_stock_executors_are_told_what_to_run(tmp_path: Path, method: str) -> None:
    async with world(tmp_path) as w, w.node(), grpc.aio.insecure_channel(w.appio) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/flwr.proto.{method}", None, None)(b"", wait_for_ready=True)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "trellis-clientapp" in str(refused.value.details())


async def test_the_first_report_is_a_hello(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node():
        hand = Hand(w.appio)
        w.hands.append(hand)
        hand.call = hand.stub.Attend(wait_for_ready=True)
        await hand.report(alive=True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await hand.call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(w.link, Link)


async def test_work_that_no_executor_comes_for_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "ProcessIsolation", partial(ProcessIsolation, absent_after=0.1))
    async with world(tmp_path) as w, w.node():
        await w.link.instruct()
        hint = f"trellis-clientapp --insecure --clientappio-api-address {w.appio}"
        await until(lambda: any(hint in record.getMessage() for record in caplog.records), "the hint")
