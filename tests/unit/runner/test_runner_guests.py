"""Apps in guests: what they give back, and how their failures are told from their ends."""

from __future__ import annotations

import re
import time
import venv
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from trellis_runner.host import GuestHost
from trellis_runner.zygote import GuestProblem
from trellis_wire.records import Array, ArrayRecord, ConfigRecord, MetricRecord
from unit.runner.runner_world import CLIENT, Federation, World, instruction, settings

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the host stays from test to test


Hosting = Callable[..., Awaitable[World]]
ECHO = "return Message(message.content, reply_to=message)"


@pytest.mark.parametrize(
    ("version", "app", "rounds"),
    [("1.24.0", "digits", 4), ("1.41.0", "digits", 4), ("1.20.0", "legacy-numpy", 4), ("1.41.0", "legacy-numpy", 4)],
)
async def test_examples_train(hosting: Hosting, version: str, app: str, rounds: int) -> None:
    world = await hosting(version)
    examples = Path(__file__).parents[3] / "examples"
    end = await Federation(world, examples / app).run(**{"num-server-rounds": rounds})
    assert end["op"] == "completed", (end, world.log[-3000:])
    accuracies = [float(found) for found in re.findall(r"^round \d+/\d+: accuracy ([\d.]+)", world.log, re.MULTILINE)]
    assert len(accuracies) == rounds + 1
    assert accuracies[-1] > 0.92


@pytest.mark.parametrize("version", ["1.20.0", "1.24.0", "1.41.0"])
async def test_records_and_metadata_come_back_as_they_were(hosting: Hosting, version: str) -> None:
    world = await hosting(version)
    npy = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".ljust(117)
        + b"\n"
        + b"12345678"
    )
    records = {
        "a": ArrayRecord({"x": Array("float32", (2,), npy), "y": Array("float32", (2,), npy)}),
        "m": MetricRecord({"i": 2**40, "f": 0.1, "list": [1, 2], "floats": [0.5]}),
        "c": ConfigRecord({"s": "ü", "b": b"\x00\xff", "t": True, "strings": ["a", ""], "bytes": [b"", b"1"]}),
    }
    outcome = await world.client(
        """
        assert message.content["a"]["x"].numpy().dtype == "float32"
        assert type(message.content["a"]["x"].data) is bytes
        context.state["seen"] = MetricRecord({"run": context.run_id % 2**62, "node": context.node_id, **{
            "rounds": context.run_config["rounds"], "partition": context.node_config["partition-id"]}})
        """
        + ECHO,
        records=records,
    )
    assert outcome.records == records, outcome
    assert outcome.state == {"seen": MetricRecord({"run": 5, "node": 7, "rounds": 3, "partition": 0})}


async def test_a_reply_belongs_to_its_instruction(world: World) -> None:
    app = world.app(CLIENT, ECHO)
    guest = await world.host.fork("client", world.sink)
    given = instruction(group_id="round-3")
    await world.send(guest, app, metadata=given)
    header, _ = await guest.frames.receive()
    reply = header["message"]["metadata"]
    assert (reply["reply_to_message_id"], reply["dst_node_id"], reply["src_node_id"]) == (given.message_id, 1, 7)
    assert (reply["run_id"], reply["group_id"], reply["message_type"]) == (5, "round-3", "train")
    assert 0 < reply["ttl"] <= 3600
    await world.host.release(guest)


async def test_the_state_goes_round(world: World) -> None:
    app = world.app(
        CLIENT,
        """
        count = context.state["count"]["n"] if "count" in context.state else 0
        context.state["count"] = MetricRecord({"n": count + 1})
        return answer(message, n=count)
        """,
    )
    first = await world.message(app)
    second = await world.message(app, state=first.state)
    assert (first.config["n"], second.config["n"]) == (0, 1)
    assert second.state == {"count": MetricRecord({"n": 2})}


@pytest.mark.parametrize("version", ["1.20.0", "1.41.0"])
async def test_an_exception_is_told_with_its_traceback(hosting: Hosting, version: str) -> None:
    world = await hosting(version)
    outcome = await world.client("raise ValueError('no such partition')")
    assert (outcome.code, outcome.reason) == (2, """<class 'ValueError'>:<'no such partition'>""")
    assert "Traceback (most recent call last)" in world.log
    assert "main_app.py" in world.log


async def test_an_app_that_cannot_be_loaded(world: World) -> None:
    for module, reason in {
        "raise RuntimeError('at import')": "RuntimeError",
        "": "AttributeError",
        "app = 3": "is a int, not a ClientApp",
        "import broken.part": "broken.part",
    }.items():
        app = world.app(CLIENT, ECHO, other=module, broken="")
        outcome = await world.message(app, reference="other:app")
        assert outcome.code == 1
        assert reason in outcome.reason


async def test_a_missing_module_is_told_with_what_to_do(world: World) -> None:
    for module, package in {"not_there_at_all": "not_there_at_all", "cv2.aruco": "opencv"}.items():
        outcome = await world.message(world.app(f"import {module}\n" + CLIENT, ECHO))
        assert outcome.code == 1
        assert repr(module.partition(".")[0]) in outcome.reason
        assert f"-m pip install {package}" in outcome.reason
        assert outcome.reason in world.log
        late = await world.client(f"import {module}")
        assert late.code == 2
        assert "-m pip install" in late.reason


async def test_a_death_is_told_from_an_exception_at_once(world: World) -> None:
    for body, end in {
        "os._exit(7)": "ended by itself with exit code 7",
        "os.kill(os.getpid(), 9)": "was ended by SIGKILL (kill -9, or no memory left)",
        "import ctypes; ctypes.string_at(0)": "was ended by SIGSEGV",
        "os.abort()": "was ended by SIGABRT",
    }.items():
        world.lines.clear()
        guest = await world.start("client", "print('last words')\n" + body)
        since = time.monotonic()
        outcome = await world.outcome(guest)
        assert outcome.crashed == end
        assert time.monotonic() - since < 1.0
        assert "last words" in world.log
    assert (await world.client("return answer(message, fine=True)")).config == {"fine": True}


async def test_sys_exit_is_no_death(world: World) -> None:
    outcome = await world.client("sys.exit('enough')")
    assert (outcome.code, outcome.reason) == (2, "The ClientApp called sys.exit('enough')")


async def test_the_memory_limit(hosting: Hosting) -> None:
    world = await hosting(memory=6 << 30)
    outcome = await world.client("everything = bytearray(8 << 30)")
    assert outcome.code == 2
    assert "6144 MiB of address space (--guest-memory)" in outcome.reason
    assert "MemoryError" in world.log


async def test_a_limit_below_what_flwr_needs(tmp_path: Path, hosting: Hosting) -> None:
    with pytest.raises(GuestProblem, match=r"its memory is limited to 67,108,864 bytes|cannot host Flower Apps"):
        await hosting(memory=64 << 20)


async def test_an_interpreter_without_flwr(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    host = GuestHost(settings(tmp_path / "bare/bin/python", tmp_path))
    with pytest.raises(GuestProblem, match=r"bare/bin/python -m pip install flwr"):
        await host.start()


async def test_no_interpreter(tmp_path: Path) -> None:
    host = GuestHost(settings(tmp_path / "nothing/python", tmp_path))
    with pytest.raises(GuestProblem, match="name another one with --guest-python"):
        await host.start()


async def test_forks_draw_different_numbers(world: World) -> None:
    app = world.app(
        CLIENT,
        """
        import random, numpy, uuid
        return answer(message, draws=[random.random(), numpy.random.rand(), numpy.random.default_rng().random()])
        """,
    )
    draws = [(await world.message(app)).config["draws"] for _ in range(3)]
    assert all(len({draw[kind] for draw in draws}) == 3 for kind in range(3)), draws


async def test_the_app_imports_its_own_modules_afresh_and_never_ours(world: World) -> None:
    app = world.app(
        CLIENT,
        """
        import records  # ours has that name too
        try:
            import frames
        except ModuleNotFoundError:
            return answer(message, own=records.own, argv=sys.argv, path=sys.path[0])
        """,
        records="own = 'of the app'",
    )
    outcome = await world.message(app)
    assert outcome.config == {"own": "of the app", "argv": ["flwr-clientapp"], "path": str(app)}
    (app / "records.py").write_text("own = 'changed since then'")
    assert (await world.message(app)).config["own"] == "changed since then"


async def test_a_server_app_that_raises_or_exits(world: World) -> None:
    ends = []
    for body in ("raise KeyError('round')", "sys.exit(3)", "sys.exit()", "import not_there"):
        guest = await world.start("server", body)
        header, _ = await guest.frames.receive()
        if header["op"] == "running":
            await guest.frames.send({"id": header["id"]})
            header, _ = await guest.frames.receive()
        ends.append((header["op"], header.get("reason")))
        await world.host.release(guest)
    assert ends[0] == ("failed", "KeyError: 'round'")
    assert ends[1] == ("failed", "The ServerApp called sys.exit(3)")
    assert ends[2] == ("completed", None)
    assert ends[3][0] == "failed"
    assert "pip install not_there" in str(ends[3][1])
    assert "Traceback" in world.log


async def test_the_server_apps_state_comes_back(world: World) -> None:
    guest = await world.start("server", "context.state['x'] = MetricRecord({'rounds': 3})")
    header, _ = await guest.frames.receive()
    await guest.frames.send({"id": header["id"]})
    header, buffers = await guest.frames.receive()
    assert header["op"] == "completed"
    assert header["state"][0][:2] == ["x", "metric"]
    assert len(buffers) == 1
    await world.host.release(guest)
