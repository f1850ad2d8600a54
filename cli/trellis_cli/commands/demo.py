"""Start a federation on this machine, train an app on it while showing its log, and leave nothing running."""

import argparse
import re
import time

from trellis_cli.arguments import add_federation
from trellis_cli.errors import EXIT_FAILED, EXIT_OK
from trellis_cli.output import Cell, Output

_ROUND = re.compile(r"^round (\d+)/\d+: accuracy ([\d.]+).*?([\d.]+) s\s*$", re.MULTILINE)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app", nargs="?", default="examples/digits", metavar="APP", help="default: examples/digits")
    parser.add_argument("-c", "--run-config", action="append", default=[], metavar="CONFIG", help="as for `run`")
    add_federation(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    from trellis_cli.control import Control
    from trellis_cli.follow import follow
    from trellis_cli.local import connection_to, plan, running
    from trellis_cli.scratch import scratch
    from trellis_cli.submit import prepare

    submission = prepare(args.app, args.run_config)
    log: list[str] = []

    def write(text: str) -> None:
        log.append(text)
        out.write(text)

    with scratch("trellis-demo-") as directory:
        began = time.monotonic()
        wanted = plan(args, directory, stock_ports=False)
        with running(wanted, out) as federation, Control(connection_to(federation)) as control:
            out.note(f"Ready after {time.monotonic() - began:.1f} s. Submitting {submission.app} ...")
            submitted = time.monotonic()
            run_id = control.start_run(submission.request("")).run_id
            follow(control, run_id, write, out.note)
            took = time.monotonic() - submitted
            run, _ = control.get_run(run_id)
    rounds = [
        [Cell(number), Cell(accuracy), Cell(seconds)] for number, accuracy, seconds in _ROUND.findall("".join(log))
    ]
    if rounds:
        out.table(("round", "accuracy", "seconds"), rounds)
    ended = run.status.sub_status
    out.say(f"Run {run_id} {ended} after {took:.1f} s{': ' + run.status.details if run.status.details else ''}.")
    return EXIT_OK if ended == "completed" else EXIT_FAILED
