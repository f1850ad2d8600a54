"""Addresses of what a run left behind: signed, and good for a while, so that a browser or curl can follow them."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from typing import Final

LIFETIME: Final = 3600
"""Seconds that a link is good for."""

KEY: Final = "artifact-links"
"""The name of the key in the database."""

_NUMBER: Final = re.compile("[0-9]{1,12}")


class Links:
    """Makes and checks them. `base` is where the HTTP edge is reached from outside, without a slash at its end."""

    def __init__(self, key: bytes, base: Callable[[], str], clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._base = base
        self._clock = clock

    def make(self, run_id: int, name: str) -> str:
        expires = int(self._clock()) + LIFETIME
        signature = self._sign(run_id, name, expires)
        return f"{self._base()}/v1/artifacts/{run_id}/{name}?expires={expires}&signature={signature}"

    def problem(self, run_id: int, name: str, expires: str, signature: str) -> str | None:
        """Why a link opens nothing; None for a good one."""
        sound = _NUMBER.fullmatch(expires) is not None and signature.isascii()
        if not sound or not hmac.compare_digest(signature, self._sign(run_id, name, int(expires))):
            return "This link was altered or is not of this SuperLink."
        if int(expires) < self._clock():
            return "This link has expired; ask for a new one with `flwr pull`."
        return None

    def _sign(self, run_id: int, name: str, expires: int) -> str:
        return hmac.digest(self._key, f"{run_id}/{name}/{expires}".encode(), hashlib.sha256).hex()
