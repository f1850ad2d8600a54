"""Archive a federation: no run starts in it any more. For good."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        control.archive_federation(args.federation)
    out.say(f"{args.federation} is archived; its SuperNodes stay bound to it until they are removed.")
    out.json({"success": True})
    return EXIT_OK
