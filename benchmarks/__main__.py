"""`python -m benchmarks`: measure, print the tables, write the numbers and the plot."""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks import containers, credentials, measure, report
from benchmarks.federation import TRELLIS, Setup
from benchmarks.measure import MIB, Result

MEASUREMENTS = ("small", "model", "waiting", "idle", "credentials")  # if none is named
IN_CONTAINERS = "containers"  # needs a Docker engine and the images
MODEL_ROUNDS = 4  # the first of them is not counted


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "measurements", nargs="*", help=f"of {', '.join(MEASUREMENTS)} (all of them if none is named), {IN_CONTAINERS}"
    )
    parser.add_argument("--releases", default="trellis,1.33.0,1.41.0", help="what is compared, with commas between")
    parser.add_argument("--stock-nodes", default="1.24.0", help="the stock release of `waiting`")
    parser.add_argument(
        "--rounds", type=int, default=30, help="warm rounds with a small array (stock: a sixth of them)"
    )
    parser.add_argument("--sizes", default="100,1024", help="MiB of `model`; from 512 on for Trellis only")
    parser.add_argument("--idle-nodes", type=int, default=500)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument(
        "--output", type=Path, default=Path("build/benchmarks"), help="folder for results.json, table.md, plot.svg"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.measurements) - {*MEASUREMENTS, IN_CONTAINERS}:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    return arguments


def _plan(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Result]]]:
    wanted = arguments.measurements or MEASUREMENTS
    releases = arguments.releases.split(",")
    stock_rounds = max(4, arguments.rounds // 6)
    if "small" in wanted:
        for release in releases:
            rounds = arguments.rounds if release == TRELLIS else stock_rounds
            yield "small", release, partial(measure.small_round, Setup(release, release), rounds + 1)
    if "model" in wanted:
        for size in (int(size) for size in arguments.sizes.split(",")):
            for release in releases if size < 512 else [TRELLIS]:
                label = f"{release}, {size} MiB"
                yield "model", label, partial(measure.model_round, Setup(release, release), size * MIB, MODEL_ROUNDS)
    if "waiting" in wanted:
        for superlink in (TRELLIS, arguments.stock_nodes):
            setup = Setup(superlink, arguments.stock_nodes)
            yield "waiting", setup.label, partial(measure.waiting, setup, stock_rounds + 1)
    if "idle" in wanted:
        idle = partial(measure.idle_nodes, count=arguments.idle_nodes, seconds=arguments.idle_seconds)
        for release in filter(measure.comparable, releases):
            yield "idle", release, partial(idle, release)
            if release == TRELLIS:
                yield "idle", f"{release}, signatures believed", partial(idle, release, signatures=False)
    if "credentials" in wanted:
        yield "credentials", "in one process", credentials.costs
    if IN_CONTAINERS in wanted:
        yield IN_CONTAINERS, "processes and containers in turn", partial(containers.rounds, arguments.rounds + 1)
        yield IN_CONTAINERS, "docker compose up", containers.compose_up


def main() -> int:
    """All measurements that were asked for; 1 if one of them failed (the others are made nevertheless)."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the federation under way on its way out
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Result]] = {}
    failed = 0
    for name, label, measurement in _plan(arguments):
        print(f"{datetime.now(UTC):%H:%M:%S} {name}: {label} ...", file=sys.stderr, flush=True)
        try:
            results.setdefault(name, []).append(measurement())
        except (RuntimeError, OSError) as error:
            failed += 1
            print(f"{name}, {label}: {error}", file=sys.stderr)
        machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        written = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "results": results}
        (arguments.output / "results.json").write_text(json.dumps(written, indent=1) + "\n")
    table = report.tables(results)
    (arguments.output / "table.md").write_text(table + "\n")
    (arguments.output / "plot.svg").write_text(report.plot(results))
    print(table)
    print(f"\nWritten to {arguments.output}/: results.json, table.md, plot.svg", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
