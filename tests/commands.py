"""Commands that tests run, and what they say when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping


class CommandFailed(AssertionError):
    """A command did not end as it should; says what it wrote."""


def command(
    *argv: str,
    env: Mapping[str, str] | None = None,
    input: str = "",
    timeout: float = 240,
    check: bool = True,
    errors: bool = True,
) -> str:
    """Both outputs of a command, or without `errors` the first; CommandFailed where it fails and `check` is set."""
    done = subprocess.run(
        argv,
        env=None if env is None else {**os.environ, **env},
        input=input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors else subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        raise CommandFailed(
            f"{' '.join(argv)} ended with {done.returncode}:\n{(done.stdout + (done.stderr or ''))[-8000:]}"
        )
    return done.stdout
