"""A SuperNode behind its site's proxy: a real one, in a process of its own, on the way to a real gRPC server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from node_world import World, world
from test_program import certificate, round_trip
from waits import until

PROGRAM = Path(__file__).with_name("site_proxy.py")


class SiteProxy:
    """The proxy's process; `asked` is what peers wanted of it so far."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._log = log
        self._process = process

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    @property
    def port(self) -> str:
        return self.lines[0]

    @property
    def asked(self) -> list[str]:
        return self.lines[1:]


@contextmanager
def site_proxy(folder: Path, *credentials: str) -> Iterator[SiteProxy]:
    log = folder / "proxy.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, str(PROGRAM), *credentials], stdout=file, text=True)
    try:
        yield SiteProxy(process, log)
    finally:
        process.kill()
        process.wait()


async def restart_with_tls(w: World, folder: Path) -> list[str]:
    """The SuperLink serves TLS from now on; the flags of a SuperNode that trusts it."""
    cert, key = certificate(folder)
    await w.link.stop()
    await w.link.start(grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    return ["--root-certificates", str(cert), "--appio-insecure"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("no_proxy", "through"),
    [
        ({}, True),
        ({"NO_PROXY": "localhost,.example.org,10.0.0.0/8"}, True),
        ({"NO_PROXY": "localhost, 127.0.0.1"}, False),
        ({"NO_PROXY": "127.0.0.0/8"}, False),
        ({"no_proxy": "127.0.0.1"}, False),
        ({"NO_PROXY": "*"}, False),
    ],
    ids=str,
)
async def test_the_way_to_the_superlink(tls: bool, no_proxy: dict[str, str], through: bool, tmp_path: Path) -> None:
    with site_proxy(tmp_path) as proxy:
        await until(lambda: proxy.lines, "the proxy listens")
        async with world(tmp_path) as w:
            flags = await restart_with_tls(w, tmp_path) if tls else []
            node = w.process(*flags, insecure=not tls, HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}", **no_proxy)
            await round_trip(w)
            assert set(proxy.asked) == ({f"CONNECT {w.link.address} HTTP/1.1"} if through else set())
            assert await node.terminate() == 0


async def test_a_proxy_that_wants_credentials_gets_them(tmp_path: Path) -> None:
    with site_proxy(tmp_path, "site:s3cret") as proxy:
        await until(lambda: proxy.lines, "the proxy listens")
        async with world(tmp_path) as w:
            node = w.process(HTTPS_PROXY=f"http://site:s3cret@127.0.0.1:{proxy.port}")
            await round_trip(w)
            assert set(proxy.asked) == {f"CONNECT {w.link.address} HTTP/1.1"}
            assert await node.terminate() == 0
            assert "s3cret" not in node.log


async def test_a_proxy_that_refuses_is_named(tmp_path: Path) -> None:
    with site_proxy(tmp_path, "site:s3cret") as proxy:
        await until(lambda: proxy.lines, "the proxy listens")
        async with world(tmp_path) as w:
            node = w.process(HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}")
            await until(lambda: len(proxy.asked) >= 4, "the node has tried again, each time both ways")
            assert await node.terminate() == 0
            assert "407" in node.log
            assert "proxy" in node.log
