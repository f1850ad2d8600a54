"""Who fails too often waits: what failed, by address."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from typing import Final

ATTEMPTS: Final = 60
WINDOW: Final = 60.0
"""So many failed attempts has one address in so many seconds; then it waits."""
_ADDRESSES: Final = 10_000


class Attempts:
    """Counts them; of IPv6 by network, as whoever has one address there has 2^64."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._began = clock()

    def add(self, address: str) -> int:
        """How many these are now within the window."""
        if self._clock() - self._began > WINDOW:
            self._counts.clear()
            self._began = self._clock()
        where = network_of(address)
        if len(self._counts) < _ADDRESSES or where in self._counts:
            self._counts[where] = self._counts.get(where, 0) + 1
        return self._counts.get(where, 0)

    def too_many(self, address: str) -> bool:
        """Whether the address has had its share."""
        return self._clock() - self._began <= WINDOW and self._counts.get(network_of(address), 0) >= ATTEMPTS


def address_of(peer: str) -> str:
    """The address in what a transport calls its peer: `ipv4:10.0.0.1:4321`, `ipv6:%5B::1%5D:4321`, `http:...`."""
    _, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0]
    return re.sub(r"^(\[|%5B)|(\]|%5D)$", "", host, flags=re.IGNORECASE) or peer


def network_of(address: str) -> str:
    """What one caller can have all of: an IPv4 address, or 64 bits of an IPv6 one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address
