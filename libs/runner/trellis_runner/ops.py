"""The operations port of an executor: it is ready while it attends its SuperLink or SuperNode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Gauge
from trellis_kit.ops import OpsServer

from trellis_runner.attendance import Attendance


@asynccontextmanager
async def ops_port(address: str | None, attendance: Attendance) -> AsyncIterator[None]:
    """Serve /livez, /readyz and /metrics at host:port meanwhile; nothing where `address` is None."""
    registry = CollectorRegistry()
    connected = Gauge("trellis_executor_connected", "1 while work can be handed to this executor", registry=registry)
    connected.set_function(lambda: attendance.connected)
    free = Gauge("trellis_executor_free_slots", "Pieces of work that it would take now", registry=registry)
    free.set_function(lambda: attendance.free_slots)

    async def ready() -> str | None:
        if attendance.draining:
            return "The executor stops."
        return None if attendance.connected else "Not connected to the SuperLink or SuperNode yet."

    server = OpsServer(address, ready, registry)
    await server.start()
    try:
        yield
    finally:
        await server.stop()
