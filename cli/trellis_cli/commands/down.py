"""End the federation that `up --detach` started. What it stores stays in its folder."""

import argparse
import os
import signal
import time
from pathlib import Path

from trellis_cli.commands.up import DIRECTORY, running_pid
from trellis_cli.errors import EXIT_OK, CliError
from trellis_cli.output import Output

_END_SECONDS = 30.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", type=Path, default=DIRECTORY, metavar="DIR", help=f"default: {DIRECTORY}")


def execute(args: argparse.Namespace, out: Output) -> int:
    directory: Path = args.directory.expanduser().absolute()
    pid = running_pid(directory)
    if pid is None:
        out.say(f"No federation runs from {directory}.")
        return EXIT_OK
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _END_SECONDS
    while running_pid(directory) is not None:
        if time.monotonic() > end:
            raise CliError(f"The federation (pid {pid}) does not end; its log is {directory / 'up.log'}.")
        time.sleep(0.1)
    out.say("The federation has ended.")
    return EXIT_OK
