"""Forget the login at a SuperLink on this machine. Sessions elsewhere end at the identity provider."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.credentials import CredentialFile

    was = CredentialFile().forget(connection.address)
    out.say(f"Logged out of {connection.address}." if was else f"There was no login at {connection.address}.")
    out.json({"success": True, "address": connection.address, "logged-out": was})
    return EXIT_OK
