"""Secrets that are renewed while services run."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

_log = logging.getLogger(__name__)


class Renewable:
    """Tokens, one a line: the first is shown to others, all are taken from them, so that both sides of a connection can
    be given a new one in turn. Their file is read anew once it changes; one that cannot be used keeps those before."""

    def __init__(self, content: str, file: Path | None = None) -> None:
        """`content` is what the file had at the start; without a file it stays."""
        self._values: Sequence[str] = _lines(content)
        self._file = file
        self._seen = _stamp(file)

    def all(self) -> Sequence[str]:
        """Those that are taken now."""
        stamp = _stamp(self._file)
        if self._file is not None and stamp is not None and stamp != self._seen:
            self._seen = stamp
            try:
                found = _lines(self._file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):
                found = ()
            if found:
                self._values = found
                _log.info("The secret in %s was renewed", self._file)
            else:
                _log.warning("The changed secret in %s cannot be used, the one before stays", self._file)
        return self._values

    def takes(self, token: str) -> bool:
        """Whether it is one of them; takes as long for any wrong one."""
        return sum(hmac.compare_digest(token.encode(), one.encode()) for one in self.all()) > 0

    def shown(self) -> str:
        """The one to show."""
        return self.all()[0]


def _lines(content: str) -> Sequence[str]:
    return tuple(line.strip() for line in content.splitlines() if line.strip())


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_ino, found.st_size)
