"""Take an account out of a federation; without ACCOUNT, leave it yourself. Its runs go on."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("federation", metavar="FEDERATION", help="@account/name")
    parser.add_argument("account", nargs="?", metavar="ACCOUNT", help="the account's name (default: you)")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        control.remove_account(args.account, args.federation)
    out.say(f"{args.account or 'You'} left {args.federation}.")
    out.json({"success": True})
    return EXIT_OK
