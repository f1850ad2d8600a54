"""The ClientApp process against a SuperNode that breaks off, forgets answers and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trellis_kit.lifecycle import Fatal
from trellis_wire.records import Array, ArrayRecord, ConfigRecord, MetricRecord
from unit.runner.appio_world import Hub, tokens
from unit.runner.runner_world import CLIENT, descriptors, gone
from waits import until

Attend = Callable[..., Any]

ECHO = "return Message(message.content, reply_to=message)"
LARGE = ArrayRecord({"x": Array("uint8", (12 << 20,), b"\x93NUMPY" + bytes(range(250)) * (12 << 12), "bytes")})


# Code of apps: makes a file that the test waits for; waits for one that the test makes; ends as usual.
MARKS = "open('{}', 'w').close()"
WAITS = "while not os.path.exists('{}'): time.sleep(0.01)"
ANSWER = "return answer(message)"


def config_of(hub: Hub, finish: Any) -> Any:
    _, error, records = hub.read(finish.reply)
    assert records is not None, error
    return getattr(records["config"], "items")  # noqa: B009


async def test_a_task_from_its_order_to_its_reply(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(
        tmp_path / "app",
        CLIENT,
        "print('works')\ncontext.state['n'] = MetricRecord({'n': 1})\n"
        "return answer(message, rounds=context.run_config['rounds'])",
    )
    async with attend():
        hub.task("t1", app)
        finish = await hub.finish_of("t1")
        await until(lambda: hub.log_of("t1") == "works\n", "the log")
        await until(lambda: hub.free == 1, "the free slot")
    assert config_of(hub, finish) == {"rounds": 3}
    assert hub.read_records(finish.state) == {"n": MetricRecord({"n": 1})}
    assert finish.runtime > 0
    assert hub.reports[:3] == ["free 1", "free 0", "free 1"]
    metadata, _, _ = hub.read(finish.reply)
    assert (metadata.src_node_id, metadata.dst_node_id, metadata.message_type) == (7, 1, "train")


async def test_large_objects_are_pulled_on_after_a_break_and_only_missing_ones_pushed(
    hub: Hub, attend: Attend, tmp_path: Path
) -> None:
    app = hub.app(tmp_path / "app", CLIENT, ECHO)
    hub.break_pull_after = 8  # in the second of three chunks
    async with attend():
        hub.task("t1", app, {"big": LARGE})
        finish = await hub.finish_of("t1")
    assert tokens(hub.calls, "PullObjects") == 2
    assert hub.pulled.count(hub.pulled[0]) == 1  # what was whole is not pulled again
    assert hub.pulled.count(hub.pulled[1]) == 2
    assert hub.read(finish.reply)[2] == {"big": LARGE}
    assert hub.pushed == []  # the node has every large object


async def test_a_new_model_is_pushed_again_where_the_answer_got_lost(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(
        tmp_path / "app",
        CLIENT,
        "data = os.urandom(11 << 20)\n"
        "array = Array(dtype='uint8', shape=(len(data),), stype='bytes', data=data)\n"
        "return Message(RecordDict({'big': ArrayRecord({'x': array, 'y': array})}), reply_to=message)",
    )
    hub.lose = {"PushObjects": 2, "FinishTask": 1}
    async with attend():
        hub.task("t1", app)
        finish = await hub.finish_of("t1")
    _, _, records = hub.read(finish.reply)
    assert records is not None
    arrays = getattr(records["big"], "items")  # noqa: B009
    assert len(arrays["x"].data) == 11 << 20
    assert bytes(arrays["x"].data) == bytes(arrays["y"].data)
    assert len(set(hub.pushed)) == 3


async def test_a_superlink_that_is_away_for_a_while(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    begun, gate, ended = marks / "begun", marks / "gate", marks / "ended"
    body = f"print('before')\n{MARKS.format(begun)}\n{WAITS.format(gate)}\nprint('after')\n{MARKS.format(ended)}\n"
    app = hub.app(tmp_path / "app", CLIENT, body + ANSWER)
    async with attend():
        hub.task("t1", app)
        await until(begun.exists, "the beginning")
        await hub.kill()
        gate.touch()
        await until(ended.exists, "the app ends meanwhile")
        await hub.start()
        await hub.finish_of("t1")
        await until(lambda: hub.log_of("t1") == "before\nafter\n", "the log")
        await until(lambda: len(hub.hellos) == 2, "the second hello")
        assert hub.hellos[0].executor_id == hub.hellos[1].executor_id
        assert list(hub.hellos[1].holding) in (["t1"], [])
        hub.task("t2", app)
        await hub.finish_of("t2")


async def test_what_it_holds_is_told_after_a_reconnect_and_dropped_when_unknown(
    hub: Hub, attend: Attend, tmp_path: Path
) -> None:
    app = hub.app(tmp_path / "app", CLIENT, "print(os.getpid(), flush=True)\ntime.sleep(300)")
    async with attend():
        hub.task("t1", app)
        await until(lambda: hub.log_of("t1") != "", "the app")
        await hub.kill()
        await hub.start()
        await until(lambda: len(hub.hellos) == 2, "the second hello")
        assert list(hub.hellos[1].holding) == ["t1"]
        hub.order(drop="t1")
        await until(lambda: gone(int(hub.log_of("t1"))), "the app's end")
        await until(lambda: hub.reports[-1] == "free 1", "the free slot")
    assert hub.finished == {}


async def test_stop_ends_the_app_at_once_without_a_reply(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(tmp_path / "app", CLIENT, "print(os.getpid(), flush=True)\nwhile True: pass")
    hub.slow_logs = asyncio.Event()
    async with attend():
        hub.task("t1", app)
        await until(lambda: tokens(hub.calls, "PushLogs") == 1, "the app")
        since = time.monotonic()
        hub.order(stop="t1")
        await until(lambda: hub.reports[-1] == "free 1", "the free slot")
        assert time.monotonic() - since < 1.0  # though the log is not taken
        hub.slow_logs.set()
        await until(lambda: hub.log_of("t1") != "", "the log")
        await until(lambda: gone(int(hub.log_of("t1"))), "the end of the app")
    assert hub.finished == {}


def pushes_more_than(hub: Hub, count: int) -> bool:
    return tokens(hub.calls, "PushLogs") > count


async def test_a_log_that_is_not_taken_delays_no_reply(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    app = hub.app(tmp_path / "app", CLIENT, f"print('x' * 100, flush=True)\n{WAITS.format(gate)}\n{ANSWER}")
    hub.slow_logs = asyncio.Event()
    async with attend():
        for token in ("t1", "t2"):
            gate.unlink(missing_ok=True)
            before = tokens(hub.calls, "PushLogs")
            hub.task(token, app)
            await until(partial(pushes_more_than, hub, before), "the log is on its way")
            gate.touch()
            await hub.finish_of(token, timeout=5)
            await until(lambda: hub.free == 1, "the free slot")
        hub.slow_logs.set()
        await until(lambda: hub.log_of("t2") != "", "the log")


async def test_several_slots_work_at_once(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    meets = f"open(f'{here}/{{os.getpid()}}', 'w')\nwhile len(os.listdir({str(here)!r})) < 3: time.sleep(0.01)"
    app = hub.app(tmp_path / "app", CLIENT, f"{meets}\nreturn answer(message, pid=os.getpid())")
    async with attend(slots=3):
        for token in ("t1", "t2", "t3"):
            hub.task(token, app)
        pids = [config_of(hub, await hub.finish_of(token))["pid"] for token in ("t1", "t2", "t3")]
        assert len(set(pids)) == 3
    assert hub.hellos[0].slots == 3


@pytest.mark.parametrize(("lifetime", "processes"), [("message", 3), ("run", 1)])
async def test_the_lifetime_of_a_guest(hub: Hub, attend: Attend, tmp_path: Path, lifetime: str, processes: int) -> None:
    app = hub.app(
        tmp_path / "app", CLIENT, "print(message.metadata.message_id)\nreturn answer(message, pid=os.getpid())"
    )
    pids = []
    async with attend(guest_lifetime=lifetime):
        for token in ("t1", "t2", "t3"):
            hub.task(token, app)
            pids.append(config_of(hub, await hub.finish_of(token))["pid"])
            await until(lambda token=token: hub.log_of(token).count("\n") == 1, "its own log")  # type: ignore[misc]
    assert len(set(pids)) == processes
    assert all(map(gone, pids))


async def test_errors_of_an_app_are_replies(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    raises = hub.app(tmp_path / "a", CLIENT, "raise ValueError('no')")
    dies = hub.app(tmp_path / "b", CLIENT, "os._exit(9)")
    broken = hub.app(tmp_path / "c", "import nothing_of_this_name\n" + CLIENT, ECHO)
    hub.fabs["f" * 64] = b"no zip"
    errors = []
    async with attend():
        for token, app in (("t1", raises), ("t2", dies), ("t3", broken), ("t4", "f" * 64), ("t5", "d" * 64)):
            hub.task(token, app)
            metadata, error, _ = hub.read((await hub.finish_of(token)).reply)
            assert metadata.reply_to_message_id == "a" * 64 or metadata.reply_to_message_id
            errors.append((error.code, error.reason))
    assert errors[0] == (2, "<class 'ValueError'>:<'no'>")
    assert errors[1] == (8, "The ClientApp's process ended by itself with exit code 9.")
    assert errors[2][0] == 1
    assert "pip install nothing_of_this_name" in errors[2][1]
    assert errors[3][0] == 7
    assert errors[4] == (7, "The SuperNode refused what the task needs: No such FAB.")
    assert "Traceback" in hub.log_of("t1")


async def test_work_is_finished_before_the_end_or_handed_back(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    app = hub.app(tmp_path / "app", CLIENT, f"print('x', flush=True)\n{WAITS.format(gate)}\n{ANSWER}")
    async with attend(grace=10.0) as (stop, task):
        hub.task("t1", app)
        await until(lambda: hub.log_of("t1") != "", "the app")
        stop.request()
        await until(lambda: "free 0" in hub.reports[-1:], "no more work")
        assert "t1" not in hub.finished
        gate.touch()
        assert await asyncio.wait_for(task, 5) == 0
    assert "t1" in hub.finished
    hub.hellos.clear()
    endless = hub.app(tmp_path / "endless", CLIENT, "print(os.getpid(), flush=True)\ntime.sleep(300)")
    async with attend(grace=2.5) as (stop, task):
        hub.task("t2", endless)
        await until(lambda: hub.log_of("t2") != "", "the app")
        stop.request()
        await until(lambda: "free 0" in hub.reports[-1:], "no more work")
        assert await asyncio.wait_for(task, 5) == 0
    assert "back t2" in hub.reports
    assert "t2" not in hub.finished
    assert gone(int(hub.log_of("t2")))


async def test_run_once(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(tmp_path / "app", CLIENT, "return answer(message)")
    async with attend(run_once=True) as (_, task):
        hub.task("t1", app)
        assert await asyncio.wait_for(task, 10) == 0
    assert "t1" in hub.finished


async def test_a_wrong_join_token_ends_the_executor_with_a_sentence(hub: Hub, attend: Attend) -> None:
    hub.join_token = "right"
    async with attend(join_token="wrong") as (_, task):
        with pytest.raises(Fatal, match=r"refused: The join token is missing or wrong"):
            await asyncio.wait_for(task, 10)
    async with attend(join_token="right"):
        assert len(hub.hellos) == 1


async def test_descriptors_do_not_add_up(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(tmp_path / "app", CLIENT, "print('x')\nreturn answer(message)")
    async with attend(slots=2):

        async def work(count: int, name: str) -> None:
            for number in range(count):
                hub.task(f"{name}{number}", app, {"c": ConfigRecord({"n": number})})
                await hub.finish_of(f"{name}{number}")

        await work(3, "warm")
        await until(lambda: hub.log_of("warm2") != "", "the log")
        await until(lambda: hub.free == 2, "both slots are free")
        before = descriptors()
        await asyncio.gather(work(40, "a"), work(40, "b"))
        # One left open by each task would be 80; some are those of guests that are forked ahead.
        await until(lambda: descriptors() < before + 20, "descriptors closed again")
