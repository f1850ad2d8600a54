"""Let a SuperNode take part that came by itself and waits (SuperLinks with --unknown-supernodes hold)."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, identifier, superlink_of
from trellis_cli.errors import EXIT_OK, CliError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node_id", type=identifier, metavar="NODE_ID", help="as `supernode list` shows it")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        found = [node for node in control.list_nodes().nodes_info if node.node_id == args.node_id]
        if not found or not found[0].trellis_held:
            raise CliError(f"No SuperNode {args.node_id} waits for approval; `trellis supernode list` shows which do.")
        # Its key is registered as an operator would from a file: stock's command line can approve, too.
        node_id = control.register_node(found[0].public_key)
    out.say(f"SuperNode {node_id} is approved.")
    out.json({"success": True, "node-id": str(node_id)})
    return EXIT_OK
