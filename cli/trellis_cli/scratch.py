"""A folder for as long as a command runs, gone afterwards, however the command ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A new folder below the system's one for temporary files; first removes those that a killed command left.

    A folder in use is locked by its owner, and locks end with their process.
    """
    sweep(prefix)
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        if (lock := _lock(path)) is None:
            continue  # somebody else's sweep came between
        if path.exists():
            break
        os.close(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # what still ends may still write; the next sweep takes the rest
        os.close(lock)


def sweep(prefix: str) -> None:
    """Remove this user's folders with this prefix that nobody uses."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if (lock := _lock(path)) is None:
            continue
        if os.fstat(lock).st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(path: Path) -> int | None:
    """The descriptor that holds the lock; None where somebody else holds it, or the folder is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
