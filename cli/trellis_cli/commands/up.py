"""Start a federation on this machine and keep it until Ctrl-C: a SuperLink, SuperNodes and their executors.

What it stores stays in its folder, so the next `up` goes on where this one ended.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from trellis_cli.arguments import add_federation
from trellis_cli.errors import EXIT_OK, CliError, UsageError
from trellis_cli.output import Output

DIRECTORY = Path.home() / ".trellis" / "federation"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_federation(parser)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, metavar="DIR", help=f"default: {DIRECTORY}")
    parser.add_argument("--free-ports", action="store_true", help="use any free ports instead of 9091 to 9094")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--keep", action="store_true", help="keep it in the foreground (the default)")
    how.add_argument("--detach", action="store_true", help="return once it is ready; `down` ends it")


def pid_file(directory: Path) -> Path:
    """Where the process that keeps a federation writes its pid."""
    return directory / "up.pid"


def execute(args: argparse.Namespace, out: Output) -> int:
    directory: Path = args.directory.expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{directory} cannot be used: {error.strerror}. Name another with --directory.") from error
    if (pid := running_pid(directory)) is not None:
        raise CliError(f"A federation runs from {directory} already (pid {pid}); end it with {_down(directory)}.")
    return _detach(directory, out) if args.detach else _keep(args, directory, out)


def _down(directory: Path) -> str:
    return "`trellis down`" if directory == DIRECTORY else f"`trellis down --directory {directory}`"


def _keep(args: argparse.Namespace, directory: Path, out: Output) -> int:
    from trellis_cli.local import plan, running

    wanted = plan(args, directory, stock_ports=not args.free_ports)
    try:
        with running(wanted, out) as federation:
            pid_file(directory).write_text(str(os.getpid()))
            control = wanted.addresses.control
            out.say(f"The federation is ready. Submit with: trellis run APP --superlink {control} --insecure")
            ends = "Ctrl-C" if os.isatty(0) else _down(directory)
            out.note(f"Logs: {wanted.logs}. {ends} ends it.")
            while True:
                federation.check()
                time.sleep(1.0)
    except KeyboardInterrupt:
        return EXIT_OK
    finally:
        pid_file(directory).unlink(missing_ok=True)


def _detach(directory: Path, out: Output) -> int:
    argv = [sys.executable, "-m", "trellis_cli", *[word for word in sys.argv[1:] if word != "--detach"]]
    log = directory / "up.log"
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    while running_pid(directory) is None:
        if process.poll() is not None:
            raise CliError(f"The federation did not start:\n{log.read_text()}")
        time.sleep(0.1)
    out.say(log.read_text().strip())
    return EXIT_OK


def running_pid(directory: Path) -> int | None:
    """The process that keeps this folder's federation, if it lives."""
    try:
        pid = int(pid_file(directory).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"trellis" in command else None
