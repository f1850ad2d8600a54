"""Invite an account to a federation."""

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
    from trellis_cli.main import program

    accept = f"{program()} federation invite accept {args.federation}"
    said = f"{args.account} is invited to {args.federation} and can accept: {accept}"
    return ask(args, out, lambda control: control.invite(args.account, args.federation), said)
