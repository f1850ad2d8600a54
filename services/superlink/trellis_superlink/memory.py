"""Keeps the process's memory near what it uses.

grpc hands a message over in thousands of small pieces, which glibc would keep after they are freed: a SuperLink that
once took a few 20 MiB objects from several peers stayed 60 MiB larger, with this 10 MiB.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

LARGE = 64 * 1024
"""Bytes from which a buffer gets pages of its own, which the system has back as soon as it is freed."""


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function that only glibc has; None elsewhere."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


_mallopt = _of_libc("mallopt")
_malloc_trim = _of_libc("malloc_trim")


def tune() -> None:
    """Call before threads are started. Does nothing where the C library is not glibc."""
    if _mallopt is None:
        _log.debug("No mallopt here; freed memory goes back when the C library sees fit")
        return
    _mallopt(_M_ARENA_MAX, 2)
    _mallopt(_M_MMAP_THRESHOLD, LARGE)
    _mallopt(_M_TRIM_THRESHOLD, LARGE)


def give_back() -> None:
    """Returns what was freed to the system; about a millisecond."""
    if _malloc_trim is not None:
        _malloc_trim(0)
