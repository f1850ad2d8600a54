"""What containers and TLS cost: rounds beside those of plain processes, and how long `docker compose up` takes."""

import contextlib
import io
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from trellis_kit.federation import free_ports
from trellis_testing import Federation, FederationContainer, Layout, ProcessFederation
from trellis_testing.blocking import BlockingFederation

from benchmarks.measure import APP, KIB, Result, phases_of, rounds_of

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "compose" / "compose.yaml"
NODES = ("trellis", "trellis")
TURNS = 3  # of each kind, one after the other: what else the machine does meanwhile falls on both
STARTS = 3


def rounds(count: int) -> Result:
    """The small round of both kinds in turns, each turn a federation of its own whose first round is not counted."""
    found: dict[str, list[float]] = {"processes": [], "containers": []}
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory(prefix="trellis-benchmark-") as folder:
            found["processes"] += _rounds(partial(ProcessFederation, Layout(supernodes=NODES), Path(folder)), count)
        found["containers"] += _rounds(partial(FederationContainer, NODES, tls=True), count)
    medians = {kind: statistics.median(seconds) for kind, seconds in found.items()}
    return {
        "what": "rounds",
        "rounds": len(found["containers"]),
        **{f"{kind}_median": median for kind, median in medians.items()},
        **{f"{kind}_worst": max(seconds) for kind, seconds in found.items()},
        "ratio": medians["containers"] / medians["processes"],
        "load": os.getloadavg()[0],
    }


def _rounds(make: Callable[[], Federation], count: int) -> list[float]:
    with contextlib.redirect_stderr(io.StringIO()):  # every role's log, which a federation shows when it ends
        federation = BlockingFederation(make)
        try:
            config = {"rounds": count, "nodes": len(NODES), "array-bytes": KIB}
            result = federation.run(APP, config, timeout=120 + 30 * count)
        finally:
            federation.stop()
    if result.outcome != "completed":
        raise RuntimeError(f"The run {result.outcome}: {result.reason}\n{result.log[-2000:]}")
    return rounds_of(phases_of(result.log.splitlines()))[1:]


def compose_up() -> Result:
    """From `docker compose up --wait`, with nothing there but the images, to its end; several times."""
    ports = dict(zip(("FLEET_PORT", "CONTROL_PORT", "HTTP_PORT"), map(str, free_ports(3, "0.0.0.0")), strict=True))
    command = ["docker", "compose", "--project-name", f"trellis-benchmark-{os.getpid()}", "--file", str(COMPOSE)]
    seconds = []
    for _ in range(STARTS):
        try:
            began = time.monotonic()
            _compose([*command, "up", "--wait"], ports)
            seconds.append(time.monotonic() - began)
        finally:
            _compose([*command, "down", "--volumes"], ports)
    return {
        "what": "compose up",
        "seconds": seconds,
        "median": statistics.median(seconds),
        "load": os.getloadavg()[0],
    }


def _compose(command: list[str], ports: dict[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **ports}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
