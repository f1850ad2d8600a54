"""A server that listens on a name ends when the name means another address."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import pytest
from trellis_kit.grpc_server import GrpcServer
from trellis_kit.moves import end_when_moved


class Names:
    """What the resolver says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address: str | None = "127.0.0.2"
        self.asked = 0
        self.signals: list[int] = []
        monkeypatch.setattr(socket, "getaddrinfo", self._lookup)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.signals.append(number))

    def _lookup(self, host: str, *_: Any, **__: Any) -> list[Any]:
        assert host == "clientappio"
        self.asked += 1
        if self.address is None:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, 0))]

    async def asked_again(self, times: int = 2) -> None:
        wanted = self.asked + times
        async with asyncio.timeout(20):
            while self.asked < wanted:
                await asyncio.sleep(0.005)


async def test_a_name_that_moves_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    watch = asyncio.create_task(end_when_moved("clientappio:9094", look_every=0.01))
    await names.asked_again()
    names.address = None  # the container is off its network: nothing to do about it
    await names.asked_again()
    names.address = "127.0.0.2"  # and back as before
    await names.asked_again()
    assert not watch.done()
    names.address = "127.0.0.3"
    await asyncio.wait_for(watch, 20)
    assert names.signals == [signal.SIGTERM]


async def test_a_name_that_is_not_there_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    names.address = None
    watch = asyncio.create_task(end_when_moved("clientappio:9094", look_every=0.01))
    await names.asked_again()
    names.address = "127.0.0.2"
    await names.asked_again()
    assert not watch.done()
    watch.cancel()
    assert names.signals == []


@pytest.mark.parametrize("address", ["0.0.0.0:9094", "[::]:9094", "127.0.0.1:0"])
async def test_addresses_do_not_move(address: str) -> None:
    await asyncio.wait_for(end_when_moved(address, look_every=0.01), 20)


async def test_servers_watch_the_name_they_listen_on(caplog: pytest.LogCaptureFixture) -> None:
    server = GrpcServer("test", "localhost:0", None)
    await server.start()
    watches = [task for task in asyncio.all_tasks() if task.get_name() == "test-moves"]
    assert len(watches) == 1
    await server.stop(1)
    await asyncio.wait(watches, timeout=20)
    assert watches[0].cancelled()
