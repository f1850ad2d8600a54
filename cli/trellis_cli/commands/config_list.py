"""List the SuperLink connections of config.toml."""

import argparse

from trellis_cli.arguments import add_format
from trellis_cli.connection import config_file, connection_names
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    names, default = connection_names()
    if out.as_json:
        out.json({"superlink": names, "default": default})
        return EXIT_OK
    out.say(f"Flower config file: {config_file()}")
    out.say("SuperLink connections:" if names else "No SuperLink connections.")
    for name in names:
        out.say(f"  {name}{' (default)' if name == default else ''}")
    return EXIT_OK
