"""The measurements. Each returns plain numbers (seconds, bytes, shares of a core), ready for JSON."""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.federation import TRELLIS, Federation, Setup, minor, running
from benchmarks.processes import (
    Line,
    Process,
    cpu_seconds,
    cpu_seconds_of_session,
    forget_peak,
    peak,
    resident,
    start,
    wait_until,
)
from benchmarks.wiretap import Wiretap

APP = Path(__file__).parent / "apps" / "echo"
KIB, MIB = 1024, 1024 * 1024

Result = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """One send_and_receive of the app: began and ended at the ServerApp, and the times of each ClientApp."""

    round: int
    kind: str
    began: float
    ended: float
    clients: list[dict[str, float]]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def phases_of(log: Sequence[str]) -> list[Phase]:
    """What the app told in these lines of its log."""
    found = []
    for line in log:
        _, mark, text = line.partition("BENCH ")
        if mark:
            one = json.loads(text)
            found.append(Phase(one["round"], one["phase"], one["began"], one["ended"], one["clients"]))
    if not found:
        raise RuntimeError("The app reported no phase:\n" + "\n".join(log[-30:]))
    return found


def _phases(lines: list[Line]) -> list[Phase]:
    return phases_of([line.text for line in lines])


def rounds_of(phases: list[Phase]) -> list[float]:
    """Seconds of each round: from the start of its train phase to the end of its last one."""
    numbers = sorted({phase.round for phase in phases})
    rounds = ([phase for phase in phases if phase.round == number] for number in numbers)
    return [max(phase.ended for phase in one) - min(phase.began for phase in one) for one in rounds]


def small_round(setup: Setup, rounds: int) -> Result:
    """Train and evaluate with a 1 KiB array: a first run on a fresh federation, then a second one that is warm."""
    with running(setup) as federation:
        result: Result = {"setup": setup.label}
        for name, count in (("first_run", 1), ("second_run", rounds)):
            config = {"rounds": count, "nodes": setup.count, "array-bytes": KIB}
            submitted, lines = federation.submit(APP, dict(config), 120 + 30 * count)
            phases = _phases(lines)
            first = max(phase.ended for phase in phases if phase.round == 1)
            result[f"{name}_first_round_after_submit"] = first - submitted
            if name == "second_run":
                warm = rounds_of(phases)[1:]
                result |= {"rounds": len(warm), "median": statistics.median(warm), "worst": max(warm)}
        return result


def model_round(setup: Setup, size: int, rounds: int) -> Result:
    """An array of `size` bytes down to each node and another one back; hops as the kernel's counters tell."""
    with running(setup) as federation:
        time.sleep(3.0)  # let the start-up's memory and threads settle: this is what "idle" means
        pid = federation.superlink.pid
        idle = resident(pid)
        forget_peak(pid)
        cpu, all_cpu = cpu_seconds(pid), _all_cpu_seconds(federation)
        config = {"rounds": rounds, "nodes": setup.count, "array-bytes": size, "evaluate": False}
        with _wiretap(federation) as tap:
            _, lines = federation.submit(APP, dict(config), 300 + rounds * size / MIB)
        phases = _phases(lines)
        warm = sorted(phases[1:] or phases, key=lambda phase: phase.seconds)
        middle = warm[(len(warm) - 1) // 2]
        return {
            "setup": setup.label,
            "bytes": size,
            "rounds": len(phases),
            "median": statistics.median(phase.seconds for phase in warm),
            "first": phases[0].seconds,
            "superlink_idle_bytes": idle,
            "superlink_growth_bytes": peak(pid) - idle,
            "superlink_cpu_seconds_per_round": (cpu_seconds(pid) - cpu) / len(phases),
            "cpu_seconds_per_round": (_all_cpu_seconds(federation) - all_cpu) / len(phases),
            "load": os.getloadavg()[0],
            "hops": _hops(middle, tap),
        }


def _all_cpu_seconds(federation: Federation) -> float:
    return sum(cpu_seconds_of_session(process.pid) for process in federation.processes)


def _wiretap(federation: Federation) -> Wiretap:
    hops = {federation.appio: "appio", federation.fleet: "fleet"}
    hops |= dict.fromkeys(federation.node_ports, "clientappio")
    by_process: dict[int, str] = {}
    if federation.appio == federation.fleet:  # stock's HTTP port serves both: told apart by who calls
        hops[federation.appio] = "appio"
        by_process = {node.pid: "fleet" for node in federation.nodes}
    return Wiretap(hops, by_process)


HOPS = (  # in the order of a round: name, wiretap's hop, direction
    ("ServerApp to SuperLink", "appio", "up"),
    ("SuperLink to SuperNodes", "fleet", "down"),
    ("SuperNodes to ClientApps", "clientappio", "down"),
    ("ClientApps to SuperNodes", "clientappio", "up"),
    ("SuperNodes to SuperLink", "fleet", "up"),
    ("SuperLink to ServerApp", "appio", "down"),
)


def _hops(phase: Phase, tap: Wiretap) -> list[Result]:
    """When each hop of the phase moved its bytes, in seconds from the phase's start, and its share of the phase."""
    moved = tap.moved(phase.began, phase.ended)
    result = []
    for name, hop, direction in HOPS:
        one = moved.get(hop, {}).get(direction)
        if one is not None:
            first, last = one.first - phase.began, one.last - phase.began
            share = (last - first) / phase.seconds
            result.append({"hop": name, "bytes": one.bytes, "from": first, "to": last, "share": share})
    apps = [(client["began"] - phase.began, client["ended"] - phase.began) for client in phase.clients]
    began, ended = min(app[0] for app in apps), max(app[1] for app in apps)
    result.insert(
        3,
        {"hop": "in the ClientApps", "bytes": 0, "from": began, "to": ended, "share": (ended - began) / phase.seconds},
    )
    return result


def waiting(setup: Setup, rounds: int) -> Result:
    """Rounds with stock nodes, and how much of each phase passed outside of them: what their SuperLink makes them wait.

    A stock node (1.24) says "Receiving" when its PullMessages has brought a message and "Sent successfully" when its
    reply is delivered. The time before the last node's first and after the last node's second is the SuperLink's and
    the ServerApp's.
    """
    with running(setup) as federation:
        config = {"rounds": rounds, "nodes": setup.count, "array-bytes": KIB}
        _, lines = federation.submit(APP, dict(config), 120 + 30 * rounds)
        time.sleep(0.5)  # the nodes' last lines
        phases = _phases(lines)
        down, up = [], []
        for phase in phases[2:]:  # the first round starts what later ones find running
            received = [_within(node, phase, "Receiving:")[0] for node in federation.nodes]
            sent = [_within(node, phase, "Sent successfully")[-1] for node in federation.nodes]
            down.append(max(received) - phase.began)
            up.append(max(0.0, phase.ended - max(sent)))
        return {
            "setup": setup.label,
            "rounds": rounds - 1,
            "median": statistics.median(rounds_of(phases)[1:]),
            "down_median": statistics.median(down),
            "up_median": statistics.median(up),
            "down_worst": max(down),
            "up_worst": max(up),
        }


def _within(node: Process, phase: Phase, word: str) -> list[float]:
    """When the node said this in the phase. "Sent" may come a little after the ServerApp has the reply."""
    times = [line.at for line in node.lines if word in line.text and phase.began <= line.at <= phase.ended + 0.5]
    if not times:
        raise RuntimeError(f"{node.name} never said {word} in round {phase.round}, {phase.kind}:\n{node.tail()}")
    return times


def idle_nodes(release: str, count: int, seconds: float, *, signatures: bool = True) -> Result:
    """The processor time of a SuperLink whose nodes have nothing to do."""
    program = () if signatures else (sys.executable, "-m", "benchmarks.unsigned")
    with running(Setup(release, release, count=0, superlink_program=program)) as federation:
        argv = [sys.executable, "-m", "benchmarks.simulated", "--superlink", f"127.0.0.1:{federation.fleet}"]
        root = Path(__file__).parent.parent
        nodes = start("simulated nodes", [*argv, "--count", str(count)], {"PATH": "/usr/bin:/bin"}, root)
        try:
            ready = lambda: any(line.text == "READY" for line in nodes.lines)  # noqa: E731
            wait_until(f"{count} nodes are there", ready, [nodes, federation.superlink], 240)
            time.sleep(8.0)  # past the burst of first calls
            pid = federation.superlink.pid
            began, used = time.monotonic(), cpu_seconds(pid)
            time.sleep(seconds)
            share = (cpu_seconds(pid) - used) / (time.monotonic() - began)
            memory = resident(pid)
            if nodes.popen.poll() is not None:
                raise RuntimeError(f"The simulated nodes ended:\n{nodes.tail()}")
        finally:
            nodes.stop(3.0)
    return {
        "setup": release if release != TRELLIS or signatures else f"{release}, signatures believed",
        "nodes": count,
        "seconds": seconds,
        "core_share": share,
        "superlink_bytes": memory,
        "held": release == TRELLIS,
    }


def comparable(release: str) -> bool:
    """Whether simulated nodes, which speak gRPC, can talk to a SuperLink of this release."""
    return release == TRELLIS or minor(release) < (1, 40)
