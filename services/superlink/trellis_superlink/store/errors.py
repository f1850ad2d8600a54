"""The one error that storage has for its callers."""

from __future__ import annotations

import errno

from sqlalchemy.exc import DBAPIError

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.ENOMEM})


class TryAgainLater(Exception):
    """Storage cannot take it now (disk full, database locked, input/output error); nothing was stored, nothing lost."""


class Unusable(Exception):
    """The database or a folder is not what it should be, and only the operator can change that; says what and why."""


def passing(error: BaseException) -> bool:
    """Is `error` a state of the disk or database rather than a fault of what was asked?"""
    if isinstance(error, DBAPIError):
        return type(error).__name__ in {"OperationalError", "InternalError"}
    return isinstance(error, OSError) and error.errno in _PASSING
