"""What an operator sees of one run over all its roles: logs that join by their ids, and the operations ports."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from trellis_kit.federation import free_ports
from trellis_testing import TRELLIS, Layout, ProcessFederation

ROLES = ("superlink", "serverapp", "supernode-1", "clientapp-1")
ROUNDS = 2

Line = dict[str, Any]


def fetch(port: int, path: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:  # another status than 200 raises
        return str(answer.read().decode())


@dataclass
class Seen:
    """One run, as its federation left it."""

    run_id: str = ""
    node_id: str = ""
    logs: dict[str, list[Line]] = field(default_factory=dict)
    answers: dict[tuple[str, str], str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def run(seen: Seen, digits: Path, tmp_path: Path) -> Seen:
    """The same one for all tests of this module."""
    if seen.run_id:
        return seen
    ports = dict(zip(("superlink", "supernode"), free_ports(2), strict=True))
    flags = {role: ("--ops-address", f"127.0.0.1:{port}") for role, port in ports.items()}
    layout = Layout((TRELLIS,), superlink_flags=flags["superlink"], supernode_flags=flags["supernode"])
    async with ProcessFederation(layout, tmp_path) as federation:
        handle = await federation.run(digits, {"num-server-rounds": ROUNDS, "min-sites": 1})
        result = await handle.finished()
        assert result.outcome == "completed", result.log
        seen.answers = {
            (role, path): fetch(port, path)
            for role, port in ports.items()
            for path in ("/livez", "/readyz", "/metrics")
        }
        (node_id,) = await federation.online()
    seen.node_id, seen.run_id = str(node_id), str(handle.run_id)
    # A line that is no JSON (a traceback, a word of some library) fails here.
    seen.logs = {name: [json.loads(line) for line in federation[name].log().splitlines()] for name in ROLES}
    return seen


def with_id(lines: Iterable[Line], **ids: str) -> list[Line]:
    return [line for line in lines if ids.items() <= line.items()]


def test_one_format_in_every_role(run: Seen) -> None:
    for name, lines in run.logs.items():
        for line in lines:
            assert {"time", "level", "service", "logger", "message"} <= line.keys()
            assert line["service"] == name.removesuffix("-1")
            assert all(isinstance(line[one], str) for one in line if one.endswith("_id"))  # JSON readers round 64 bits


def test_the_run_is_found_in_every_role(run: Seen) -> None:
    for name, lines in run.logs.items():
        assert with_id(lines, run_id=run.run_id), name


def test_the_node_is_found_wherever_it_has_a_part(run: Seen) -> None:
    for name in ("superlink", "supernode-1", "clientapp-1"):
        assert with_id(run.logs[name], node_id=run.node_id), name


def test_a_reply_is_followed_by_its_request_id(run: Seen) -> None:
    """From the process that worked it out over the SuperNode to the SuperLink: one id, and one id for each reply."""
    answered = with_id(run.logs["clientapp-1"], message="Answered", run_id=run.run_id)
    requests = [line["request_id"] for line in answered]
    assert len(set(requests)) == len(requests) >= ROUNDS
    for request in requests:
        (delivered,) = with_id(run.logs["supernode-1"], request_id=request, message="Reply delivered")
        (taken,) = with_id(run.logs["superlink"], request_id=request, message="Reply taken")
        assert delivered["message_id"] == taken["message_id"]
        assert taken["run_id"] == run.run_id
        assert taken["node_id"] == run.node_id


def metric(text: str, name: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.parametrize("role", ["superlink", "supernode"])
def test_both_services_say_that_they_are_well(run: Seen, role: str) -> None:
    assert run.answers[role, "/livez"] == "alive\n"
    assert run.answers[role, "/readyz"] == "ready\n"


@pytest.mark.parametrize(
    ("role", "least"),
    [
        (
            "superlink",
            {
                'trellis_runs{status="finished"}': 1,
                "trellis_nodes_online": 1,
                "trellis_executors": 1,
                'trellis_messages_total{kind="instruction_in"}': ROUNDS,
                'trellis_messages_total{kind="reply_in"}': ROUNDS,
                'trellis_call_bytes_total{direction="received",surface="fleet"}': 1000,
                'trellis_held_calls{surface="fleet"}': 1,
            },
        ),
        (
            "supernode",
            {
                "trellis_supernode_instructions_total": ROUNDS,
                "trellis_supernode_replies_total": ROUNDS,
                "trellis_supernode_executors": 1,
                "trellis_supernode_joined": 1,
            },
        ),
    ],
)
def test_the_metrics_count_the_run(run: Seen, role: str, least: Mapping[str, float]) -> None:
    text = run.answers[role, "/metrics"]
    assert {name: metric(text, name) for name in least if metric(text, name) < least[name]} == {}
