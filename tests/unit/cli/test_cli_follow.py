"""A run's log is shown whole, in order, once, whatever happens to the connection."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime

import grpc
import pytest
from control_server import RUN_ID, Failure, Served, a_run
from trellis_cli.main import main

LOG = [(1000.0 + number / 10, f"line {number}\n") for number in range(10)]
WHOLE = "".join(text for _, text in LOG)
LOST: Failure = (grpc.StatusCode.UNAVAILABLE, "Socket closed")


def follow(superlink: Served, *more: str) -> int:
    return main(["log", str(RUN_ID), "--superlink", superlink.address, "--insecure", *more])


def test_the_whole_log_once(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.runs, superlink.control.log = [a_run("finished", "completed")], LOG
    assert follow(superlink) == 0
    assert capsys.readouterr().out == WHOLE


def test_colours_are_for_terminals(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.runs = [a_run("finished", "completed")]
    superlink.control.log = [(1000.0, "\x1b[92mINFO\x1b[0m: round 1\n")]
    assert follow(superlink) == 0
    assert capsys.readouterr().out == "INFO: round 1\n"


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(LOST, id="restarted"),
        pytest.param((grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), id="refreshed"),
        pytest.param((grpc.StatusCode.INTERNAL, "RST_STREAM"), id="reset"),
        pytest.param(None, id="closed early by something in between"),
    ],
)
def test_goes_on_after_a_lost_connection(
    superlink: Served, capsys: pytest.CaptureFixture[str], failure: Failure | None
) -> None:
    control = superlink.control
    control.log = LOG

    def cut(call: int) -> tuple[int, Failure | None] | None:
        control.runs = [a_run() if call < 3 else a_run("finished", "completed")]
        return (4, failure) if call < 3 else None

    control.cut = cut
    assert follow(superlink) == 0
    assert capsys.readouterr().out == WHOLE
    assert control.log_calls[:3] == [0.0, LOG[3][0], LOG[7][0]]


def test_an_unknown_run_ends_it(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.refuse["StreamLogs"] = (grpc.StatusCode.NOT_FOUND, "Run ID not found")
    assert follow(superlink) == 1
    assert f"There is no run {RUN_ID}" in capsys.readouterr().err


def test_a_first_call_that_fails_is_not_tried_for_ever(superlink: Served) -> None:
    superlink.control.refuse["StreamLogs"] = LOST
    assert follow(superlink) == 3


def test_show_ends_although_the_run_goes_on(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.runs, superlink.control.log = [a_run()], LOG
    assert follow(superlink, "--show") == 0
    assert capsys.readouterr().out == WHOLE


def test_show_goes_by_the_superlinks_clock(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.time() + 3600  # our clock is an hour late
    superlink.control.runs, superlink.control.log = [a_run()], [(begun + at, text) for at, text in LOG]
    superlink.control.now = datetime.fromtimestamp(begun + 2000, UTC).isoformat()
    assert follow(superlink, "--show") == 0
    assert capsys.readouterr().out == WHOLE


@pytest.mark.parametrize(("outcome", "code"), [("completed", 0), ("failed", 1), ("stopped", 1)])
def test_run_stream_exits_as_the_run_did(
    superlink: Served, digits_app: str, outcome: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    superlink.control.runs, superlink.control.log = [a_run("finished", outcome, "because")], LOG
    assert main(["run", digits_app, "--stream", "--superlink", superlink.address, "--insecure"]) == code
    shown = capsys.readouterr()
    assert shown.out.endswith(WHOLE)
    assert ("because" in shown.err) is (outcome != "completed")


def test_ctrl_c_says_that_the_run_goes_on(
    superlink: Served, digits_app: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    superlink.control.runs, superlink.control.log = [a_run()], LOG
    counter = itertools.count()

    def write(self: object, text: str) -> None:
        if next(counter) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("trellis_cli.output.Output.write", write)
    assert main(["run", digits_app, "--stream", "--superlink", superlink.address, "--insecure"]) == 130
    said = capsys.readouterr().err
    assert f"Run {RUN_ID} goes on" in said
    assert f"stop {RUN_ID}" in said
