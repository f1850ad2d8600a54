"""Small programs that the tests of the kit start, and waits for what they bring about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECONDS = 60.0


def lives(pid: int) -> bool:
    """Whether the process runs; one that only waits for its parent to look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Program:
    """Python code in a process of its own; the lines of its output are taken one by one."""

    def __init__(self, code: str, *argv: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line, without its end; empty at the end of the output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def tell(self) -> None:
        """Let it go on: it waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Waits for its end: exit code, and what it wrote to stderr."""
        try:
            _, errors = self.process.communicate(timeout=SECONDS)
        finally:
            self.process.kill()
        return self.process.returncode, errors
