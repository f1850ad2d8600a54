"""Standard error as libraries in C write to it: read line by line, kept or passed on."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

_END_SECONDS = 1.0  # for what was written last, at the end of the process
_real: int | None = None


def descriptor() -> int | None:
    """The real standard error where `divert` was called, for child processes; None elsewhere (they inherit it)."""
    return _real


def divert(take: Callable[[str], bool]) -> None:
    """Show `take` each line that something outside Python writes to file descriptor 2; True keeps it from being seen.

    `sys.stderr` goes on writing to the real one, and so does Python's report of a crash. Call once, early: what holds
    the old `sys.stderr` writes through the diversion.
    """
    global _real
    _real = os.dup(2)
    sys.stderr.flush()
    sys.stderr = os.fdopen(_real, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    faulthandler.enable(sys.stderr)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    reader = threading.Thread(target=_read, args=(reading, _real, take), name="stderr", daemon=True)
    reader.start()
    atexit.register(_end, _real, reader)


def _end(real: int, reader: threading.Thread) -> None:
    os.dup2(real, 2)  # the pipe ends here, unless a child holds it
    reader.join(_END_SECONDS)


def _read(reading: int, real: int, take: Callable[[str], bool]) -> None:
    with os.fdopen(reading, encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
        for line in lines:
            # Whatever happens here: without a reader the pipe fills, and whoever writes to it waits for ever.
            try:
                kept = take(line.rstrip("\n"))
            except Exception:
                _log.exception("A line of standard error was not understood")
                kept = False
            if not kept:
                with contextlib.suppress(OSError):
                    os.write(real, line.encode("utf-8", errors="backslashreplace"))
