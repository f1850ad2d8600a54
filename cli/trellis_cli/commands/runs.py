"""List runs, newest first, or show one with --run-id."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, identifier, superlink_of
from trellis_cli.errors import EXIT_OK, UsageError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-id", type=identifier, metavar="ID", help="show this run only, with everything about it")
    parser.add_argument("--limit", type=int, metavar="N", help="show so many runs at most")
    parser.add_argument("--runs", action="store_true", help=argparse.SUPPRESS)  # stock up to 1.20 asks for the list so
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    if args.limit is not None and (args.limit < 1 or args.run_id is not None):
        raise UsageError("--limit is at least 1, and does not go with --run-id.")
    connection = superlink_of(args)

    from trellis_cli import views
    from trellis_cli.control import Control

    with Control(connection) as control:
        if args.run_id is not None:
            run, now = control.get_run(args.run_id)
            runs = [run]
        else:
            response = control.list_runs(args.limit)
            runs, now = views.newest_first(list(response.run_dict.values())), response.now
    if out.as_json:
        out.json({"success": True, "runs": [views.run_json(run, now) for run in runs]})
    elif args.run_id is not None:
        out.details(views.run_details(runs[0], now))
    elif runs:
        out.table(views.RUN_COLUMNS, [views.run_row(run, now) for run in runs[: args.limit]])
    else:
        out.note("No runs yet.")
    return EXIT_OK
