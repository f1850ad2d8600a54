"""`flower-superexec` of our images: stock's launcher of both executors becomes the one that --plugin-type names."""

import os
import sys
from collections.abc import Sequence

from trellis_kit.federation import StartProblem, find_program

_PROGRAMS = {"serverapp": "trellis-serverapp", "clientapp": "trellis-clientapp"}


def executor_argv(arguments: Sequence[str]) -> list[str]:
    """The executor's command line for one of stock's flower-superexec (1.21-1.42). ValueError says what is wrong."""
    rest: list[str] = []
    plugin: str | None = None
    words = iter(arguments)
    for word in words:
        if word == "--plugin-type":
            plugin = next(words, None)
        elif word.startswith("--plugin-type="):
            plugin = word.partition("=")[2]
        else:
            rest.append(word)
    if plugin not in _PROGRAMS:
        named = "is missing" if plugin is None else f"{plugin!r} is not hosted here"
        raise ValueError(f"--plugin-type {named}; there are: {', '.join(_PROGRAMS)}")
    try:
        return [find_program(_PROGRAMS[plugin]), *rest]
    except StartProblem as problem:
        raise ValueError(f"this image does not host {plugin}s (trellis/superexec and trellis/{plugin} do)") from problem


def main() -> None:
    """Becomes the executor."""
    try:
        argv = executor_argv(sys.argv[1:])
    except ValueError as problem:
        print(f"flower-superexec: {problem}.", file=sys.stderr)
        sys.exit(2)
    os.execv(argv[0], argv)
