"""A command of stock Flower that Trellis does not offer."""

import argparse

from trellis_cli.errors import EXIT_USAGE
from trellis_cli.output import Output

_NEEDS = {
    "install": "needs nothing here: the executor that runs a FAB unpacks it. To look into one: it is a zip file.",
    "chat": "needs an AgentApp and a language model behind it; Trellis runs ServerApps and ClientApps.",
    "app": "needs an account at Flower Hub, flower.ai; use stock's flwr for it.",
    "federation simulation-config": "needs a simulation runtime, which Trellis has not. "
    "`trellis up --supernodes N` starts a federation on this machine.",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = None
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)


def execute(args: argparse.Namespace, out: Output) -> int:
    name: str = args.command.name
    sentence = f"`{name}` {_NEEDS.get(name) or _NEEDS[name.split()[0]]}"
    out.json({"success": False, "error-message": sentence})
    out.note(sentence)
    return EXIT_USAGE
