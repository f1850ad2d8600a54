"""Take a SuperNode out of a federation. One that no federation holds works for everybody."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, identifier, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node_id", type=identifier, metavar="NODE_ID")
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        control.remove_from_federation(args.node_id, args.federation)
    out.say(f"SuperNode {args.node_id} is no longer in {args.federation}.")
    out.json({"success": True})
    return EXIT_OK
