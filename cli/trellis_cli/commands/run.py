"""Run a Flower App: a folder with a pyproject.toml, a .fab file, or @account/app of Flower Hub."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trellis_cli.arguments import add_format, add_superlink, resolve
from trellis_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CliError
from trellis_cli.output import Output

if TYPE_CHECKING:
    from trellis_cli.control import Control


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app", nargs="?", default=".", metavar="APP", help="the app (default: this folder)")
    parser.add_argument("name", nargs="?", metavar="SUPERLINK", help="name of the SuperLink connection")
    parser.add_argument(
        "-c",
        "--run-config",
        action="append",
        default=[],
        metavar="CONFIG",
        help="values for this run, 'rounds=3 name=\"x\"', or one .toml file; may be given again",
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign the app with this Ed25519 key (OpenSSH file)")
    parser.add_argument("--stream", action="store_true", help="follow the log until the run has finished")
    parser.add_argument("--federation", metavar="NAME", help="the federation, where a SuperLink has several")
    add_format(parser)
    add_superlink(parser, positional=False)


def execute(args: argparse.Namespace, out: Output) -> int:
    # Imports that take their time (gRPC, protobuf) wait until the command is sure to need them.
    from trellis_cli.control import Control
    from trellis_cli.submit import prepare

    submission = prepare(args.app, args.run_config, args.sign)
    connection = resolve(args, args.name, Path() if submission.info is None else submission.app)
    if args.federation_config:
        out.note("--federation-config configures simulations only; nothing of it is sent.")
    with Control(connection) as control:
        response = control.start_run(submission.request(args.federation or connection.federation))
        if response.note:
            out.note(f"Note: {response.note}")
        if not response.HasField("run_id"):
            raise CliError("The SuperLink did not start the run and did not say why; its log may.")
        where = f" in federation {response.federation}" if response.federation not in ("", "@none/default") else ""
        out.say(f"Successfully started run {response.run_id}{where}")
        out.json(submission.describe(response))
        return stream(control, response.run_id, out) if args.stream else EXIT_OK


def stream(control: "Control", run_id: int, out: Output) -> int:
    """Follow the run to its end; says how it ended. Exit code 0 only when it completed."""
    from trellis_cli.follow import follow
    from trellis_cli.main import program

    try:
        follow(control, run_id, out.write, out.note)
    except KeyboardInterrupt:
        out.note(
            f"\nRun {run_id} goes on. Follow it with `{program()} log {run_id}`, "
            f"end it with `{program()} stop {run_id}`."
        )
        return EXIT_INTERRUPTED
    return outcome(control, run_id, out)


def outcome(control: "Control", run_id: int, out: Output) -> int:
    """Say how a finished run ended."""
    run, _ = control.get_run(run_id)
    ended = run.status.sub_status or run.status.status
    reason = f": {run.status.details.strip()}" if run.status.details.strip() and ended != "completed" else ""
    out.note(f"Run {run_id} {'was stopped' if ended == 'stopped' else ended}{reason}")
    return EXIT_OK if ended == "completed" else EXIT_FAILED
