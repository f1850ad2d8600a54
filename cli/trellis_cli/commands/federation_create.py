"""Create a federation: accounts that are invited run there, on the SuperNodes that are added to it."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("federation", metavar="FEDERATION", help="its name; it is then called @you/NAME")
    parser.add_argument("--description", default="", metavar="TEXT", help="one line about it")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        name = control.create_federation(args.federation, args.description)
    out.say(f"{name} is created.")
    out.json({"success": True, "federation-id": name})
    return EXIT_OK
