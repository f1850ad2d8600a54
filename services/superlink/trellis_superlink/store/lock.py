"""One process per database: what a SuperLink holds in memory and its signals know of no other writer."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO

from trellis_superlink.store.errors import Unusable


def take(database: Path) -> BinaryIO:
    """Locks `<database>.lock` until the file returned is closed or the process ends, however it does. Unusable when
    another process holds it; OSError when the folder cannot be written."""
    # Not the database's own file: a lock there and SQLite's are the same on network file systems.
    file = database.with_name(database.name + ".lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise Unusable(f"another SuperLink uses {database}; stop it, or name another file") from error
    return file
