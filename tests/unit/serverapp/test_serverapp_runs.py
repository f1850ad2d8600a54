"""The ServerApp process against a SuperLink that breaks off, forgets answers and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trellis_kit.lifecycle import Fatal
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.records import ConfigRecord, MetricRecord
from unit.runner.appio_world import Hub, tokens
from unit.runner.runner_world import SERVER, gone
from waits import until

Attend = Callable[..., Any]
Outcome = appio_pb2.FinishRunRequest

HELPERS = """
    def make(node, size=0):
        content = {"config": ConfigRecord({"node": node, "bytes": bytes(size)})}
        return Message(RecordDict(content), node, "train", group_id="1", ttl=60.0)
"""
ODD = """
for path in os.listdir("/proc/self/fd"):
    if os.path.lexists("/proc/self/fd/" + path) and "socket" in os.readlink("/proc/self/fd/" + path):
        os.write(int(path), bytes(99) + b"x" * 99)
time.sleep(60)
"""
ROUND = """
replies = list(grid.send_and_receive([make(7), make(8)]))
print(sorted(reply.content["config"]["n"] for reply in replies))
"""


async def _answer(hub: Hub, count: int = 2) -> list[str]:
    await until(lambda: len(hub.instructions) >= count and bool(hub.subscriptions), "the instructions")
    return [await hub.reply(one, {"config": ConfigRecord({"n": n})}) for n, one in enumerate(hub.instructions)]


async def test_a_run_from_its_order_to_its_end(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(
        tmp_path / "app",
        SERVER + HELPERS,
        "assert list(grid.get_node_ids()) == [7, 8]\n" + ROUND + "context.state['x'] = MetricRecord({'rounds': 1})",
    )
    async with attend():
        hub.run("r1", app)
        replies = await _answer(hub)
        finish = await hub.finish_of("r1")
        await until(lambda: hub.free == 1, "the free slot")
    assert (finish.outcome, finish.reason) == (Outcome.COMPLETED, "")
    assert hub.read_records(finish.state) == {"x": MetricRecord({"rounds": 1})}
    assert hub.running == ["r1"]
    assert hub.log_of("r1") == "[0, 1]\n"
    assert sorted(hub.confirmed) == sorted(replies)
    assert hub.calls[-1] == "FinishRun"  # after the log and the confirmations
    assert not (tmp_path / "executor/runs/5").exists()


async def test_a_superlink_that_is_away_in_the_middle_of_a_round(
    hub: Hub, attend: Attend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = hub.app(tmp_path / "app", SERVER + HELPERS, "print('begins', flush=True)" + ROUND)
    async with attend():
        hub.run("r1", app)
        await until(lambda: bool(hub.subscriptions), "the subscription")
        first, second = list(hub.instructions)
        await hub.reply(first, {"config": ConfigRecord({"n": 1})})
        await until(lambda: len(hub.confirmed) == 1, "the first reply")
        await hub.kill()
        await until(lambda: "Not connected" in caplog.text, "the executor has noticed")
        await hub.start()
        await until(lambda: len(hub.hellos) == 2, "the second hello")
        await hub.reply(second, {"config": ConfigRecord({"n": 2})})
        finish = await hub.finish_of("r1")
    assert finish.outcome == Outcome.COMPLETED
    assert hub.subscriptions[0] == [first, second]
    assert hub.subscriptions[-1] == [second]  # only what is still to come
    assert hub.log_of("r1") == "begins\n[1, 2]\n"
    assert list(hub.hellos[1].holding) == ["r1"]
    assert len(hub.instructions) == 2


async def test_lost_answers_change_nothing(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    hub.lose = {"GetFab": 1, "PushMessages": 2, "PushObjects": 1, "PushLogs": 1, "ConfirmReceived": 1, "FinishRun": 1}
    app = hub.app(
        tmp_path / "app",
        SERVER + HELPERS,
        "replies = list(grid.send_and_receive([make(7, 300_000), make(8, 300_000)]))\nprint(len(replies))",
    )
    async with attend():
        hub.run("r1", app)
        await _answer(hub)
        finish = await hub.finish_of("r1")
    assert finish.outcome == Outcome.COMPLETED
    assert len(hub.instructions) == 2
    assert len(hub.pushed) == 2 + 1  # each once, and the one whose answer got lost again
    assert hub.log_of("r1") == "2\n"
    assert hub.lose == dict.fromkeys(hub.lose, 0)


async def test_a_refused_message_has_no_id(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    hub.refuse = {8: "no such node"}
    app = hub.app(
        tmp_path / "app", SERVER + HELPERS, "print([len(one) for one in grid.push_messages([make(7), make(8)])])"
    )
    async with attend():
        hub.run("r1", app)
        await hub.finish_of("r1")
    assert hub.log_of("r1") == "[64, 0]\n"


async def test_one_model_for_many_nodes_is_sent_once(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(
        tmp_path / "app",
        SERVER + HELPERS,
        """
        import numpy
        from flwr.common import ArrayRecord
        model = ArrayRecord([numpy.arange(1_500_000.0)])
        grid.push_messages(
            [Message(RecordDict({"model": model}), node, "train", group_id="1", ttl=60.0) for node in range(100, 120)]
        )
        """,
    )
    async with attend():
        hub.run("r1", app)
        finish = await hub.finish_of("r1")
    assert finish.outcome == Outcome.COMPLETED, hub.log_of("r1")
    assert len(hub.instructions) == 20
    assert len(hub.pushed) == len(set(hub.pushed)) == 3  # 12 MB in chunks of 5 MiB


async def test_pulling_and_timeouts(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(
        tmp_path / "app",
        SERVER + HELPERS,
        """
        ids = list(grid.push_messages([make(7), make(8)]))
        began = time.monotonic()
        assert list(grid.pull_messages(ids)) == []
        assert time.monotonic() - began < 0.5
        print("pulled nothing", flush=True)
        found = []
        while not found:
            found = list(grid.pull_messages(ids))
        assert [reply.metadata.reply_to_message_id for reply in found] == ids[:1]
        began = time.monotonic()
        assert list(grid.send_and_receive([make(9)], timeout=0.4)) == []
        assert 0.3 < time.monotonic() - began < 1.5
        """,
    )
    async with attend():
        hub.run("r1", app)
        await until(lambda: "pulled nothing" in hub.log_of("r1"), "the first pull")
        await hub.reply(next(iter(hub.instructions)), {"config": ConfigRecord({"n": 1})})
        finish = await hub.finish_of("r1")
    assert finish.outcome == Outcome.COMPLETED, hub.log_of("r1")


async def test_how_runs_fail(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    cases = {
        "raise ValueError('no sites')": "ValueError: no sites",
        "os._exit(4)": "The ServerApp's process ended by itself with exit code 4.",
        "os.kill(os.getpid(), 9)": "The ServerApp's process was ended by SIGKILL (kill -9, or no memory left).",
        "import ctypes; ctypes.string_at(0)": "The ServerApp's process was ended by SIGSEGV.",
        "sys.exit(2)": "The ServerApp called sys.exit(2)",
    }
    async with attend():
        for number, (body, reason) in enumerate(cases.items()):
            hub.run(f"r{number}", hub.app(tmp_path / f"app{number}", SERVER, "print('last words')\n" + body))
            finish = await hub.finish_of(f"r{number}")
            assert (finish.outcome, finish.reason) == (Outcome.FAILED, reason)
            assert hub.log_of(f"r{number}").startswith("last words\n")
        hub.fabs["e" * 64] = b"no zip"
        hub.run("bad", "e" * 64)
        assert "SHA-256 differs" in (await hub.finish_of("bad")).reason
        hub.run("none", "d" * 64)
        assert (await hub.finish_of("none")).reason == "The SuperLink refused what the run needs: No such FAB."
        hub.run("odd", hub.app(tmp_path / "odd", SERVER, ODD))
        finish = await hub.finish_of("odd")
        assert finish.reason == "The ServerApp's process cut its connection to the executor, which ended it."
    assert "Traceback (most recent call last)" in hub.log_of("r0")


async def test_stop_ends_a_run_at_once(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(tmp_path / "app", SERVER + HELPERS, "print(os.getpid(), flush=True)\n" + ROUND)
    async with attend():
        hub.run("r1", app)
        await until(lambda: bool(hub.subscriptions) and hub.log_of("r1") != "", "the round")
        hub.order(stop="r1")
        await until(lambda: hub.reports[-1] == "free 1", "the free slot")
        # Cut off, the app may have raised before it was ended: only the first line is its own.
        assert gone(int(hub.log_of("r1").splitlines()[0]))
        hub.run("r2", hub.app(tmp_path / "next", SERVER, "print('fine')"))
        assert (await hub.finish_of("r2")).outcome == Outcome.COMPLETED
    assert "r1" not in hub.finished


async def test_a_run_is_handed_back_when_the_grace_period_is_over(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(tmp_path / "app", SERVER, "print(os.getpid(), flush=True)\ntime.sleep(300)")
    async with attend(grace=2.5) as (stop, task):
        hub.run("r1", app)
        await until(lambda: hub.log_of("r1") != "", "the app")
        stop.request()
        assert await asyncio.wait_for(task, 6) == 0
    assert "back r1" in hub.reports
    assert hub.finished == {}
    assert gone(int(hub.log_of("r1").splitlines()[0]))


async def test_run_once_and_a_state_that_has_to_be_pushed(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(
        tmp_path / "app", SERVER, "context.state['big'] = ConfigRecord({'b': bytes(2_000_000)})\nprint('x' * 10)"
    )
    async with attend(run_once=True) as (_, task):
        hub.run("r1", app)
        assert await asyncio.wait_for(task, 10) == 0
    assert hub.read_records(hub.finished["r1"].state) == {"big": ConfigRecord({"b": bytes(2_000_000)})}
    assert tokens(hub.calls, "FinishRun") == 2
    assert len(hub.pushed) == 1


async def test_a_wrong_join_token_ends_the_executor_with_a_sentence(hub: Hub, attend: Attend) -> None:
    hub.join_token = "right"
    async with attend(join_token="wrong") as (_, task):
        with pytest.raises(Fatal, match=r"refused: The join token is missing or wrong"):
            await asyncio.wait_for(task, 10)
