"""Listening on a name: a container that left one of its networks and came back has another address under that name.

Nobody would reach a server that still listens on the old one, so the service ends in order and counts on being started
again by its platform, as every service here may be at any time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from typing import Final

from trellis_kit.settings import split_address

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 2.0


async def end_when_moved(address: str, *, look_every: float = _LOOK_SECONDS) -> None:
    """Asks this process to end (SIGTERM) once the name in `address` (host:port) means other addresses than at first.

    A name that cannot be looked up at the moment has not moved. Returns at once where `address` holds no name.
    """
    host, _ = split_address(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return
    first = await _lookup(host)
    while True:
        await asyncio.sleep(look_every)
        now = await _lookup(host)
        if first and now and first.isdisjoint(now):
            _log.warning(
                "%s is %s now, not %s any more; ending, to listen there anew", host, *map(_shown, (now, first))
            )
            os.kill(os.getpid(), signal.SIGTERM)
            return
        first = first or now


async def _lookup(host: str) -> frozenset[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(str(entry[4][0]) for entry in found)


def _shown(addresses: frozenset[str]) -> str:
    return ", ".join(sorted(addresses))
