"""Commands that ask a SuperLink for one thing and have nothing to show but that it is done."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from trellis_cli.arguments import superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output

if TYPE_CHECKING:
    from trellis_cli.control import Control


def ask(args: argparse.Namespace, out: Output, what: "Callable[[Control], None]", said: str) -> int:
    """Do it at the SuperLink that the arguments name, then say so; the exit code. CliError."""
    connection = superlink_of(args)

    from trellis_cli.control import Control  # takes its time: not before the arguments are known to be good

    with Control(connection) as control:
        what(control)
    out.say(said)
    out.json({"success": True})
    return EXIT_OK
