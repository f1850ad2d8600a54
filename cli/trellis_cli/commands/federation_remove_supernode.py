"""Take a SuperNode out of a federation. One that no federation holds works for everybody."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, identifier
from trellis_cli.ask import ask
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node_id", type=identifier, metavar="NODE_ID")
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    said = f"SuperNode {args.node_id} is no longer in {args.federation}."
    return ask(args, out, lambda control: control.remove_from_federation(args.node_id, args.federation), said)
