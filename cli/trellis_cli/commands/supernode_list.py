"""List the SuperNodes of a federation."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="also those that were unregistered")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli import views
    from trellis_cli.control import Control

    with Control(connection) as control:
        response = control.list_nodes()
    nodes = sorted(response.nodes_info, key=lambda node: node.registered_at)
    if not args.verbose:
        nodes = [node for node in nodes if node.status != "unregistered"]
    if out.as_json:
        out.json({"success": True, "nodes": [views.node_json(node, response.now) for node in nodes]})
    elif nodes:
        out.table(views.NODE_COLUMNS, [views.node_row(node, response.now) for node in nodes])
    else:
        out.note("No SuperNodes yet.")
    return EXIT_OK
