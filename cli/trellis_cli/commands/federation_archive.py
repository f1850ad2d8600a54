"""Archive a federation: no run starts in it any more. For good."""

import argparse

from trellis_cli.arguments import add_format, add_superlink
from trellis_cli.ask import ask
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    said = f"{args.federation} is archived; its SuperNodes stay bound to it until they are removed."
    return ask(args, out, lambda control: control.archive_federation(args.federation), said)
