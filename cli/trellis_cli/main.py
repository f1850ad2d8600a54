"""The `trellis` command, in images also `flwr`: finds the command that is meant, loads it alone, runs it."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from trellis_cli.commands import BY_NAME, COMMANDS, GROUPS, Command
from trellis_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, CliError, UsageError
from trellis_cli.output import Output

_FOOTER = """\
Every command answers --help. Exit codes: 0 done; 1 refused, or the run that was waited for failed; 2 wrong usage,
app or configuration; 3 the SuperLink cannot be reached now; 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never shows a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output(as_json=_wants_json(words))
    # What gRPC's core has to say about a lost connection is said in words here.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        return _dispatch(words, out)
    except CliError as error:
        out.json({"success": False, "error-message": str(error)})
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`trellis ls | head`); keep the interpreter from failing again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        if os.environ.get("TRELLIS_DEBUG"):
            raise
        print(
            f"Error: something in {program()} itself went wrong: {type(error).__name__}: {error}. "
            "Run it again with TRELLIS_DEBUG=1 for the details to report.",
            file=sys.stderr,
        )
        return EXIT_FAILED


def program() -> str:
    """The name under which we were called: trellis or flwr."""
    name = Path(sys.argv[0]).name
    return name if name in ("trellis", "flwr") else "trellis"


def _dispatch(words: list[str], out: Output) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return EXIT_OK if words else EXIT_USAGE
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"Trellis {version('trellis-cli')}")
        return EXIT_OK
    group = _group(words)
    rest = words[len(group) :]
    if group and (not rest or rest[0] in ("-h", "--help")):
        print(_overview(" ".join(group)))
        return EXIT_OK if rest else EXIT_USAGE
    command, rest = _find(words)
    module = importlib.import_module(f"trellis_cli.commands.{command.module}")
    parser = argparse.ArgumentParser(prog=f"{program()} {command.name}", description=module.__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.arguments(parser)
    parser.set_defaults(command=command)
    try:
        if command.module == "absent":
            args, _ = parser.parse_known_args(rest)  # whatever stock takes there
        else:
            # Intermixed: `run . --stream mine` means what it says; a plain parse would have lost the second word.
            args = parser.parse_intermixed_args(rest)
    except SystemExit as end:  # argparse has already said what is wrong
        return int(end.code or EXIT_OK)
    return int(module.execute(args, out))


def _find(words: list[str]) -> tuple[Command, list[str]]:
    for length in (3, 2, 1):
        command = BY_NAME.get(" ".join(words[:length]))
        if command is not None:
            return command, words[length:]
    wanted = " ".join(words[: len(_group(words)) + 1])
    raise UsageError(f"There is no command {wanted!r}; {program()} --help lists them.")


def _group(words: list[str]) -> list[str]:
    """The words at the beginning that name a group of commands."""
    return next((words[:length] for length in (2, 1) if " ".join(words[:length]) in GROUPS), [])


def _overview(group: str | None = None) -> str:
    shown = [
        one
        for one in COMMANDS
        if one.alias_of is None and (one.module != "absent" if group is None else one.name.startswith(f"{group} "))
    ]
    width = max(len(command.name) for command in shown)
    lines = [f"usage: {program()} {group or ''}{' ' if group else ''}COMMAND ...", ""]
    lines += [f"  {command.name:{width}}  {command.summary}" for command in shown]
    if group is None:
        absent = sorted(one.name for one in COMMANDS if one.module == "absent")
        lines += ["", f"Also known, not offered: {', '.join(absent)} (each says what it would need)."]
    return "\n".join([*lines, "", _FOOTER])


def _wants_json(words: Sequence[str]) -> bool:
    return "--format=json" in words or ("--format", "json") in pairwise(words)
