"""Keeps the process's memory near what it uses: glibc otherwise keeps freed buffers in one arena per thread."""

from __future__ import annotations

import ctypes
import logging

_log = logging.getLogger(__name__)

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

LARGE = 256 * 1024
"""Bytes from which a buffer gets pages of its own, which the system has back as soon as it is freed."""


def tune() -> None:
    """Call before threads are started. Does nothing where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        _log.debug("No mallopt here; freed memory goes back when the C library sees fit")
        return
    mallopt(_M_ARENA_MAX, 2)
    mallopt(_M_MMAP_THRESHOLD, LARGE)
    mallopt(_M_TRIM_THRESHOLD, LARGE)
