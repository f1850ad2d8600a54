"""What apps print, on its way to log lines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest
from trellis_runner.logs import MAX_LINE, LogPump
from trellis_wire.pb.appio import appio_pb2
from unit.runner.runner_world import World, descriptors, texts
from waits import until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the host stays from test to test


async def test_every_way_to_write_is_heard(world: World) -> None:
    outcome = await world.client(
        """
        import ctypes, logging, subprocess, warnings
        print("from print")
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("from logging")
        logging.getLogger("flwr").info("from flwr's logger")
        warnings.warn("from warnings")
        os.write(1, b"from a descriptor\\n")
        libc = ctypes.CDLL(None)
        libc.puts(b"from C"); libc.fflush(None)
        subprocess.run(["sh", "-c", "echo from a child; echo its trouble >&2"])
        print("without a newline", end="")
        return answer(message)
        """
    )
    assert outcome.code == 0
    out, err = texts(world.lines, "OUT"), texts(world.lines, "ERR")
    expected = ["from print", "from a descriptor", "from C", "from a child", "without a newline"]
    assert out.splitlines() == expected
    for text in ("to stderr", "from logging", "from flwr's logger", "from warnings", "its trouble"):
        assert text in err, text


async def test_a_line_of_10_mb_is_cut_and_counts_as_one(world: World) -> None:
    await world.client("print('x' * 10_000_000)\nprint('next')\nreturn answer(message)")
    long, following = [line.text for line in world.lines]
    assert long == "x" * MAX_LINE + " [... cut]\n"
    assert following == "next\n"


async def test_bytes_that_are_no_text(world: World) -> None:
    await world.client(r"os.write(1, b'\xff\xfe ok\n')" + "\nreturn answer(message)")
    assert world.log == "\ufffd\ufffd ok\n"


async def test_lines_come_while_the_app_works(world: World) -> None:
    guest = await world.start("client", "print('early', flush=True)\ntime.sleep(300)")
    await until(lambda: "early" in world.log, "the line", timeout=2.0)
    await world.host.release(guest, patience=0.0)


class Sink(list[str]):
    def __call__(self, lines: Sequence[appio_pb2.LogLine]) -> None:
        self.extend(f"{line.level} {line.text}" for line in lines)


async def test_a_pump_changes_its_sink_between_two_messages() -> None:
    first, second = Sink(), Sink()
    before = descriptors()
    pump = LogPump(first)
    out, err = pump.add("OUT"), pump.add("ERR")
    os.write(out, b"one\n")
    pump.redirect(None)
    assert first == ["OUT one\n"]
    os.write(err, b"between\n")
    await asyncio.sleep(0)
    pump.redirect(None)
    pump.redirect(second)
    os.write(out, b"two")
    os.close(out)
    os.close(err)
    await pump.finish()
    assert first == ["OUT one\n"]
    assert sorted(second) == ["ERR between\n", "OUT two\n"]
    assert descriptors() == before


async def test_a_pipe_that_somebody_keeps_open_does_not_hold_up_the_end() -> None:
    sink = Sink()
    pump = LogPump(sink)
    out = pump.add("OUT")
    os.write(out, b"last words\n")
    await asyncio.wait_for(pump.finish(), 1.0)
    assert sink == ["OUT last words\n"]
    os.close(out)
