"""Reject an invitation to a federation."""

import argparse

from trellis_cli.arguments import add_format, add_superlink
from trellis_cli.ask import ask
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    said = f"The invitation to {args.federation} is rejected."
    return ask(args, out, lambda control: control.reject_invitation(args.federation), said)
