"""How a service's process ends: each case with real signals to a real process."""

from __future__ import annotations

import signal

import pytest
from kit_programs import Program
from trellis_kit.lifecycle import EXIT_FAILED, EXIT_GRACE, EXIT_OK, EXIT_USAGE

HEAD = """
import asyncio, sys, time
from trellis_kit import lifecycle, logs
from trellis_kit.lifecycle import Fatal, Stop, run_service

logs.setup("test")
lifecycle._CANCEL_SECONDS = 0.5

async def main(stop):
    print("up", flush=True)
    {body}

sys.exit(run_service(main, grace={grace}))
"""


def service(*lines: str, grace: float = 10.0) -> Program:
    program = Program(HEAD.format(body="\n    ".join(lines), grace=grace))
    assert program.line() == "up"
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_it_to_stop(number: signal.Signals) -> None:
    program = service("await stop.wait()", "print('handed back', 5 < stop.remaining() <= 10, flush=True)")
    program.process.send_signal(number)
    assert program.line() == "handed back True"
    code, errors = program.end()
    assert code == EXIT_OK
    assert number.name in errors


def test_the_exit_code_is_what_it_returns() -> None:
    assert service("return 7").end()[0] == 7


def test_after_the_grace_period_it_is_cancelled() -> None:
    program = service("try: await asyncio.sleep(60)", "finally: print('cleaned up', flush=True)", grace=0.1)
    program.process.terminate()
    assert program.line() == "cleaned up"
    code, errors = program.end()
    assert code == EXIT_GRACE
    assert "0.1 s" in errors


def test_a_second_signal_ends_it_at_once() -> None:
    program = service("await stop.wait()", "print('asked', flush=True)", "await asyncio.sleep(60)", grace=60)
    program.process.terminate()
    assert program.line() == "asked"
    program.process.send_signal(signal.SIGINT)
    assert program.end()[0] == 128 + signal.SIGINT


def test_what_does_not_let_itself_be_cancelled_is_left() -> None:
    program = service(
        "while True:", "    try: await asyncio.sleep(60)", "    except asyncio.CancelledError: pass", grace=0.1
    )
    program.process.terminate()
    code, errors = program.end()
    assert code == EXIT_GRACE
    assert "does not end" in errors


@pytest.mark.parametrize("last", ["return", "raise Fatal('gone')"])
def test_a_thread_that_hangs_does_not_hold_the_end(last: str) -> None:
    program = service("asyncio.ensure_future(asyncio.to_thread(time.sleep, 60))", "await asyncio.sleep(0)", last)
    code, errors = program.end()
    assert code == EXIT_GRACE
    assert "does not end" in errors


def test_what_the_operator_has_to_mend_is_one_line() -> None:
    code, errors = service("raise Fatal('Give --insecure.')").end()
    assert code == EXIT_USAGE
    assert errors.count("\n") == 1
    assert "Give --insecure." in errors
    assert service("raise Fatal('Full.', exit_code=1)").end()[0] == EXIT_FAILED


def test_an_error_of_ours_has_its_traceback() -> None:
    code, errors = service("raise ValueError('why')").end()
    assert code == EXIT_FAILED
    assert "ValueError: why" in errors
    assert "Traceback" in errors
