"""The operations port over real connections."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from trellis_kit.lifecycle import Fatal
from trellis_kit.ops import OpsServer


class Service:
    """What the port tells about."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.hold: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.registry = CollectorRegistry()
        self.things = Counter("things", "What passed", registry=self.registry)
        self.here = Gauge("here", "What is there", registry=self.registry)
        self.count: int | None = 0

    async def ready(self) -> str | None:
        self.asked.set()
        if self.hold is not None:
            await self.hold.wait()
        return self.problem

    async def refresh(self) -> None:
        if self.count is None:
            raise OSError("The database is locked.")
        self.here.set(self.count)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[OpsServer]:
    server = OpsServer("127.0.0.1:0", service.ready, service.registry, service.refresh)
    await server.start()
    yield server
    await server.stop()


async def ask(server: OpsServer, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, type and body of an answer."""
    assert server.bound is not None
    connection = http.client.HTTPConnection(server.bound, timeout=20)

    def call() -> tuple[int, str, str]:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()

    try:
        return await asyncio.to_thread(call)
    finally:
        connection.close()


async def test_what_it_answers(server: OpsServer, service: Service) -> None:
    assert (await ask(server, "/livez"))[0] == 200
    assert (await ask(server, "/readyz"))[0] == 200
    service.problem = "The disk is full."
    status, _, body = await ask(server, "/readyz")
    assert (status, body) == (503, "The disk is full.\n")
    assert (await ask(server, "/livez"))[0] == 200  # a restart would not make room
    service.things.inc(3)
    _, kind, metrics = await ask(server, "/metrics")
    assert kind.startswith("text/plain; version=")
    assert "things_total 3.0" in metrics


async def test_metrics_are_of_now_and_outlast_trouble(server: OpsServer, service: Service) -> None:
    service.count = 7
    assert "here 7.0" in (await ask(server, "/metrics"))[2]
    service.count = 8
    assert "here 8.0" in (await ask(server, "/metrics"))[2]
    service.count = None
    service.things.inc()
    status, _, metrics = await ask(server, "/metrics")
    assert (status, "things_total 1.0" in metrics) == (200, True)


async def test_what_it_refuses(server: OpsServer) -> None:
    assert (await ask(server, "/livez", "POST"))[0] == 405
    status, _, body = await ask(server, "/")
    assert (status, "/readyz" in body) == (404, True)
    status, _, body = await ask(server, "/livez", "HEAD")
    assert (status, body) == (200, "")


async def test_a_probe_that_hangs_does_not_hold_the_end(service: Service) -> None:
    server = OpsServer("127.0.0.1:0", service.ready, service.registry)
    await server.start()
    service.hold = asyncio.Event()
    probe = asyncio.create_task(ask(server, "/readyz"))
    await service.asked.wait()
    await asyncio.wait_for(server.stop(), 10)
    try:
        status, _, _ = await probe
    except (http.client.HTTPException, OSError):
        return  # cut off
    assert status >= 500


async def test_a_taken_address_is_one_sentence(server: OpsServer, service: Service) -> None:
    assert server.bound is not None
    with pytest.raises(Fatal, match=r"ops.*--ops-address"):
        await OpsServer(server.bound, service.ready, service.registry).start()


async def test_without_an_address_there_is_no_port(service: Service) -> None:
    server = OpsServer(None, service.ready, service.registry)
    await server.start()
    assert server.bound is None
    await server.stop()
