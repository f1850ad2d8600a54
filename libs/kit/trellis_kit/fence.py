"""A fence around processes that run other people's code: what is behind it cannot be read, changed or signalled.

Landlock (Linux 5.13 and later; see landlock(7)) takes rights away from a process and all that it starts, for good. It
knows only what is allowed, folder by folder; so to hide a folder is to allow all that lies beside it and beside the
folders above it. Entries that appear there later are not allowed either, but names can be listed everywhere.

Standard library only, Python 3.9 and later: apps' interpreters load this file by its path.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator, Mapping, Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
_GET_VERSION = 1
_PATH_BENEATH = 1
_SCOPE_SIGNAL = 2  # from version 6 (Linux 6.12)
_PR_SET_NO_NEW_PRIVS = 38

WRITE_FILE, READ_FILE = 1 << 1, 1 << 2
_REMOVE_AND_MAKE = 0b1_1111_1111 << 4  # REMOVE_DIR, REMOVE_FILE, MAKE_CHAR .. MAKE_SYM
_REFER = 1 << 13  # from version 2: moving between folders, which is forbidden where it is not allowed
_TRUNCATE = 1 << 14  # from version 3
_OF_FILES = WRITE_FILE | READ_FILE | _TRUNCATE

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Of the kernel's Landlock: 0 where there is none, 6 and later can also keep signals in."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)))


class Fence:
    """Built first, closed later: `close` is quick and cannot be undone. Does nothing where the kernel has no Landlock.

    `hidden` can be neither read nor changed, `guarded` cannot be changed, except for what is `free` below it; what does
    not exist is passed over.
    """

    def __init__(self, hidden: Sequence[str] = (), guarded: Sequence[str] = (), free: Sequence[str] = ()) -> None:
        self._version = version()
        self._all = WRITE_FILE | READ_FILE | _REMOVE_AND_MAKE
        self._all |= _REFER if self._version >= 2 else 0
        self._all |= _TRUNCATE if self._version >= 3 else 0
        self._ruleset = -1
        if self._version:
            self._ruleset = self._create()
            special = {os.path.realpath(path): self._all for path in free}
            special.update((os.path.realpath(path), READ_FILE) for path in guarded)
            special.update((os.path.realpath(path), 0) for path in hidden)
            for path, rights in _grants("/", self._all, _deviating(self._all, special)):
                self._allow(path, rights)

    def _create(self) -> int:
        scoped = self._version >= 6
        attributes = _Attributes(self._all, 0, _SCOPE_SIGNAL if scoped else 0)
        size = ctypes.sizeof(attributes) if scoped else 8
        return _checked(_libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0))

    def _allow(self, path: str, rights: int) -> None:
        try:
            parent = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # gone meanwhile, or not ours to enter
        try:
            if not stat.S_ISDIR(os.fstat(parent).st_mode):
                rights &= _OF_FILES
            rule = _Beneath(rights, parent)
            _checked(_libc.syscall(_ADD_RULE, self._ruleset, _PATH_BENEATH, ctypes.byref(rule), 0))
        finally:
            os.close(parent)

    def allow(self, *folders: str) -> None:
        """These may be read and changed, though what they lie in is hidden."""
        if self._ruleset >= 0:
            for folder in folders:
                self._allow(os.path.realpath(folder), self._all)

    def close(self) -> None:
        """From now on, for this thread and all that it starts; set-user-id programs give no other rights any more."""
        if self._ruleset >= 0:
            _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            _checked(_libc.syscall(_RESTRICT_SELF, self._ruleset, 0))
            os.close(self._ruleset)
            self._ruleset = -1


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def _deviating(default: int, special: Mapping[str, int]) -> dict[str, int]:
    """Without those that have the rights of the folder they lie in anyway."""
    kept: dict[str, int] = {}
    for path in sorted(special):  # a folder comes before what is in it
        above = max((one for one in kept if path.startswith(one.rstrip("/") + "/")), key=len, default="")
        if special[path] != kept.get(above, default):
            kept[path] = special[path]
    return kept


def _grants(folder: str, rights: int, special: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The paths to allow something on, so that every path below `folder` has `rights` or those `special` gives it."""
    rights = special.get(folder, rights)
    prefix = folder if folder == "/" else folder + "/"
    below = [path for path in special if path != folder and path.startswith(prefix)]
    if not below:
        if rights:
            yield folder, rights
        return
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.is_symlink()]
    except OSError:
        return
    for name in names:
        path = prefix + name
        if any(one == path or one.startswith(path + "/") for one in below):
            yield from _grants(path, rights, special)
        elif rights:
            yield path, rights
