"""Take back the invitation of an account."""

import argparse

from trellis_cli.arguments import add_format, add_superlink
from trellis_cli.ask import ask
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("account", metavar="ACCOUNT", help="the account's name")
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    said = f"{args.account} is no longer invited to {args.federation}."
    return ask(args, out, lambda control: control.revoke_invitation(args.account, args.federation), said)
