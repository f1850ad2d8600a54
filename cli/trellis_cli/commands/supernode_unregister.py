"""Remove a SuperNode: it may no longer take part, and its key no longer opens anything."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, identifier, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node_id", type=identifier, metavar="NODE_ID")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        control.unregister_node(args.node_id)
    out.say(f"SuperNode {args.node_id} is unregistered.")
    out.json({"success": True, "node-id": str(args.node_id)})
    return EXIT_OK
