"""An app that hunts for the credentials of its hosts and for ways to speak as somebody else, in the real images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from container_world import APPS, trained
from trellis_testing import FederationContainer

DOORS = "superlink:9091 superlink:9092 superlink:9093 superlink:8000 supernode:9094"


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(600)
async def test_it_finds_none(sites: FederationContainer) -> None:
    result = await trained(sites, APPS / "hunter", {"doors": DOORS})
    assert result.outcome == "completed", f"{result.reason}\n{result.log}"
    lines = re.findall(r"^(serverapp|clientapp): (.*)$", result.log, re.MULTILINE)
    tried = {where: int(line.removeprefix("tried ")) for where, line in lines if line.startswith("tried ")}
    assert set(tried) == {"serverapp", "clientapp"}
    assert min(tried.values()) > 50
    for role in tried:
        met = " ".join(line for where, line in lines if where == role and line.startswith("met "))
        assert f"trellis-{role}" in met
        assert "tini" in met
    assert [line for line in lines if not line[1].startswith(("tried ", "met "))] == []


@contextmanager
def open_door() -> Iterator[str]:
    """Where executors need no credential, and accounts neither, but nodes do."""

    class Open(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
        def service(self, handler_call_details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(partial(self._serve, handler_call_details.method))

        def _serve(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            if "Fleet" in method:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Missing authentication metadata")
            if "Attend" in method:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The first report of an executor is its hello.")
            yield b""

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Open(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_the_hunt_finds_what_lies_open(tmp_path: Path) -> None:
    """Without a fence, from a process of the same user."""
    key = tmp_path / "tls.key"
    key.write_text("secret")
    hunt = """
import os, sys
from hunter.hunt import Hunt
h = Hunt()
print(*h.environment(), *h.descriptors(), *h.processes([os.getppid()]), *h.knock(sys.argv[1]), sep="\\n")
"""
    with key.open() as file, open_door() as door:
        found = subprocess.run(
            [sys.executable, "-c", hunt, door],
            cwd=APPS / "hunter",
            env={"JOIN_TOKEN": "secret"},
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
    assert f"{door} looks at /trellis.appio.v1.ServerAppIO/Attend" in found
    assert f"{door} answers /flwr.proto.Control/ListRuns" in found
    assert "PullMessages" not in found
    assert "variable JOIN_TOKEN" in found
    assert f"descriptor {key}" in found
    assert re.search(rf"^/proc/{os.getpid()}/environ of ", found, re.MULTILINE)
