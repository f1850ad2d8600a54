"""Stop a run."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, identifier, superlink_of
from trellis_cli.errors import EXIT_OK, CliError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", type=identifier, metavar="RUN_ID")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        if not control.stop_run(args.run_id):
            raise CliError(
                f"Run {args.run_id} could not be stopped; `trellis ls --run-id {args.run_id}` shows its state."
            )
    out.say(f"Run {args.run_id} is stopped.")
    out.json({"success": True, "run-id": str(args.run_id)})
    return EXIT_OK
