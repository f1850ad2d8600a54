"""What HEALTHCHECK of the images runs, against a real operations port."""

from __future__ import annotations

import asyncio
import sys

from prometheus_client import CollectorRegistry
from trellis_kit.federation import free_ports
from trellis_kit.ops import OpsServer


async def check(address: str | None) -> tuple[int | None, str]:
    environment = {} if address is None else {"TRELLIS_OPS_ADDRESS": address}
    argv = (sys.executable, "-I", "-m", "trellis_kit.healthcheck")
    process = await asyncio.create_subprocess_exec(*argv, env=environment, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return process.returncode, output.decode().strip()


async def test_it_says_what_readyz_says() -> None:
    problem: str | None = "The database is away."

    async def ready() -> str | None:
        return problem

    port = free_ports(1)[0]
    server = OpsServer(f"0.0.0.0:{port}", ready, CollectorRegistry())
    await server.start()
    try:
        assert await check(f"0.0.0.0:{port}") == (1, "The database is away.")
        problem = None
        assert await check(f"127.0.0.1:{port}") == (0, "ready")
    finally:
        await server.stop()


async def test_nobody_there() -> None:
    port = free_ports(1)[0]
    code, output = await check(f"0.0.0.0:{port}")
    assert code == 1
    assert output.startswith(f"0.0.0.0:{port} does not answer: ")
    code, output = await check(None)
    assert code == 1
    assert "TRELLIS_OPS_ADDRESS is not set" in output
