"""Follow a run's log until the run has finished, or show what is there with --show."""

import argparse

from trellis_cli.arguments import add_superlink, identifier, superlink_of
from trellis_cli.errors import EXIT_INTERRUPTED, EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", type=identifier, metavar="RUN_ID")
    add_superlink(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stream", action="store_true", help="follow until the run has finished (the default)")
    how.add_argument("--show", action="store_true", help="show what is there, and end")


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control
    from trellis_cli.follow import follow, show

    with Control(connection) as control:
        if args.show:
            show(control, args.run_id, out.write)
            return EXIT_OK
        try:
            follow(control, args.run_id, out.write, out.note)
        except KeyboardInterrupt:
            out.note(f"\nRun {args.run_id} goes on.")
            return EXIT_INTERRUPTED
    return EXIT_OK
