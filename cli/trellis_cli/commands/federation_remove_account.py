"""Take an account out of a federation; without ACCOUNT, leave it yourself. Its runs go on."""

import argparse

from trellis_cli.arguments import add_format, add_superlink
from trellis_cli.ask import ask
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    parser.add_argument("account", nargs="?", metavar="ACCOUNT", help="the account's name (default: you)")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    said = f"{args.account or 'You'} left {args.federation}."
    return ask(args, out, lambda control: control.remove_account(args.account, args.federation), said)
