"""The operations port of an executor."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from trellis_kit.federation import free_ports
from unit.runner.appio_world import Hub
from waits import until


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_ready_while_it_attends(hub: Hub, attend: Callable[..., Any]) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"

    async def ask(path: str) -> tuple[int, str]:
        return await asyncio.to_thread(fetch, f"http://{address}/{path}")

    async def answers(status: int) -> None:
        end = asyncio.get_running_loop().time() + 20
        while (seen := await ask("readyz"))[0] != status:
            assert asyncio.get_running_loop().time() < end, seen
            await asyncio.sleep(0.02)

    async with attend(slots=2, ops_address=address):
        await answers(200)
        await until(lambda: hub.free == 2, "its free slots")
        assert await ask("livez") == (200, "alive\n")
        metrics = (await ask("metrics"))[1]
        assert "trellis_executor_connected 1.0" in metrics
        assert "trellis_executor_free_slots 2.0" in metrics

        await hub.kill()
        await answers(503)
        assert (await ask("readyz"))[1] == "Not connected to the SuperLink or SuperNode yet.\n"
        assert (await ask("livez"))[0] == 200
        await hub.start()
        await answers(200)
