"""How freed memory is treated: kept for the next buffer, or given back to the system.

Models pass through the services in buffers of megabytes. By its defaults glibc takes each of them from the system anew
and gives it back, and touching fresh memory costs more than all the copying: 3 us for each 4 KiB page, half of what it
takes to pass a model on (measured). On the other hand it keeps for ever what a burst of messages has left in pieces.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

MIB: Final = 1024 * 1024

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function that only glibc has; None elsewhere."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


_mallopt = _of_libc("mallopt")
_malloc_trim = _of_libc("malloc_trim")


def tune(*, reuse: int = 32 * MIB, keep: int = 64 * MIB) -> None:
    """Call before threads are started. Does nothing where the C library is not glibc.

    Buffers of up to `reuse` bytes come from memory that was freed before (32 MiB at most); up to `keep` bytes of freed
    memory stay at hand.
    """
    if _mallopt is None:
        _log.debug("No mallopt here; freed memory goes back when the C library sees fit")
        return
    _mallopt(_M_ARENA_MAX, 2)
    _mallopt(_M_MMAP_THRESHOLD, reuse)
    _mallopt(_M_TRIM_THRESHOLD, keep)


def give_back() -> None:
    """Returns what was freed to the system; about a millisecond, and what is needed next is fresh again."""
    if _malloc_trim is not None:
        _malloc_trim(0)
