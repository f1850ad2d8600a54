"""TLS: what is refused and how both sides call it, certificates that change under way, what operators may decide."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pki import Authority, Pair, serve, trust
from trellis_kit import handshakes
from trellis_kit.channel import Channel, open_channel
from trellis_kit.grpc_server import GrpcServer
from trellis_kit.handshakes import Failure, Reader, meaning
from trellis_kit.lifecycle import Fatal
from trellis_kit.probe import Target, why
from trellis_kit.tls import (
    ClientTls,
    ServerTls,
    client_credentials,
    interior_tls,
    server_context,
    server_credentials,
    server_tls,
)

SERVING = health_pb2.HealthCheckResponse.SERVING


async def answered(channel: grpc.aio.Channel) -> bool:
    """Whether a call gets through."""
    try:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return bool(reply.status == SERVING)


@contextlib.asynccontextmanager
async def serving(tls: ServerTls | None) -> AsyncIterator[GrpcServer]:
    server = GrpcServer("test", "127.0.0.1:0", tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@dataclass
class Watched:
    """A server in a process of its own, and what it logs."""

    process: asyncio.subprocess.Process
    address: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        for line in self.lines:
            if condition(line):
                return line
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while True:
                text = await self.process.stderr.readline()
                assert text, f"it ended: {self.lines}"
                self.lines.append(json.loads(text))  # nothing of gRPC's own among our lines
                if condition(self.lines[-1]):
                    return self.lines[-1]


@contextlib.asynccontextmanager
async def watched(tls: ServerTls, **environ: str) -> AsyncIterator[Watched]:
    program = Path(__file__).with_name("tls_server.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), *map(str, tls.files)),
        env={**os.environ, **environ},
        stderr=asyncio.subprocess.PIPE,
    )
    server = Watched(process)
    try:
        server.address = (await server.until(lambda line: line.get("listener") == "fleet"))["address"]
        yield server
    finally:
        process.terminate()
        await process.wait()


# ---- what is refused -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Two CAs that do not know each other."""

    ours: Authority
    theirs: Authority


@pytest.fixture
def pki(tmp_path: Path) -> World:
    return World(Authority(tmp_path / "ours", "our-ca"), Authority(tmp_path / "theirs", "their-ca"))


Case = Callable[[World], tuple[ServerTls, ClientTls | None]]
REFUSED: dict[str, tuple[Case, str, str]] = {
    "wrong CA": (
        lambda pki: (serve(pki.ours.server()), trust(pki.theirs)),
        "is of a CA that is not in",
        "it does not trust the CA of this port's certificate",
    ),
    "wrong CA where clients show a certificate": (
        lambda pki: (serve(pki.ours.server(), pki.ours), trust(pki.theirs, pki.ours.client())),
        "is of a CA that is not in",
        "it does not trust the CA of this port's certificate",
    ),
    "server expired": (
        lambda pki: (serve(pki.ours.server(days=-1)), trust(pki.ours)),
        "has expired",
        "to it, this port's certificate has expired",
    ),
    "wrong name": (
        lambda pki: (serve(pki.ours.server(names=("superlink",))), trust(pki.ours)),
        "is not for 127.0.0.1 but for superlink",
        "it came by a name that is not in it: superlink",
    ),
    "client's certificate on a server": (
        lambda pki: (serve(pki.ours.client()), trust(pki.ours)),
        "not accepted: unsuitable certificate purpose",
        "not made for servers",
    ),
    "no client certificate": (
        lambda pki: (serve(pki.ours.server(), pki.ours), trust(pki.ours)),
        "wants a client certificate: give --certfile and --keyfile",
        "it shows no client certificate",
    ),
    "client of another CA": (
        lambda pki: (serve(pki.ours.server(), pki.ours), trust(pki.ours, pki.theirs.client())),
        "which 'their-ca' issued: is that the CA that it trusts for clients?",
        "its certificate is of a CA that this port does not trust",
    ),
    "client expired": (
        lambda pki: (serve(pki.ours.server(), pki.ours), trust(pki.ours, pki.ours.client(days=-1))),
        "client.crt has expired on",
        "its certificate has expired",
    ),
    "server's certificate on a client": (
        lambda pki: (serve(pki.ours.server(), pki.ours), trust(pki.ours, pki.ours.server("other"))),
        "is not made for clients",
        "its certificate is not made for clients",
    ),
    "client without TLS": (
        lambda pki: (serve(pki.ours.server()), None),
        "wants TLS: give --root-certificates in place of --insecure",
        "it does not speak TLS",
    ),
    "client without TLS where certificates are shown": (
        lambda pki: (serve(pki.ours.server(), pki.ours), None),
        "wants TLS: give --root-certificates in place of --insecure",
        "it does not speak TLS",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_both_sides_name_the_cause(case: str, pki: World) -> None:
    make, here, there = REFUSED[case]
    server_side, client_side = make(pki)
    async with watched(server_side) as server, open_channel(server.address, client_side, use_proxy=False) as channel:
        assert not await answered(channel)
        assert here in (await channel.explain() or "")
        line = await server.until(lambda line: there in line["message"])
        assert line["level"] == "WARNING"
        assert line["listener"] == "fleet"
        assert line["peer"].startswith("127.0.0.1:")


async def test_what_is_accepted_is_not_explained(pki: World) -> None:
    async with watched(serve(pki.ours.server(), pki.ours)) as server:
        async with open_channel(server.address, trust(pki.ours, pki.ours.client()), use_proxy=False) as channel:
            assert await answered(channel)
            assert await channel.explain() is None
        assert not [line for line in server.lines if line["logger"] == "trellis_kit.handshakes"]


async def test_a_server_without_tls_is_called_so_and_one_that_is_not_there_is_no_matter_of_tls(pki: World) -> None:
    async with serving(None) as server, open_channel(server.bound, trust(pki.ours), use_proxy=False) as channel:
        assert not await answered(channel)
        assert await channel.explain() == f"{server.bound} answers without TLS"
        address = server.bound
    for tls in (trust(pki.ours), None):
        async with open_channel(address, tls, use_proxy=False) as channel:
            assert not await answered(channel)
            assert await channel.explain() is None


async def test_the_cause_is_found_through_a_sites_proxy(pki: World) -> None:
    program = Path(__file__).parents[1] / "supernode" / "site_proxy.py"
    proxy = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), "site:p%ss"), stdout=asyncio.subprocess.PIPE
    )
    assert proxy.stdout is not None
    try:
        port = int(await proxy.stdout.readline())
        async with watched(serve(pki.ours.server())) as server:
            target = Target(server.address, trust(pki.theirs), f"http://site:p%25ss@127.0.0.1:{port}")
            assert "is of a CA that is not in" in (await asyncio.to_thread(why, target) or "")
            await server.until(lambda line: "does not trust the CA of this port's certificate" in line["message"])
            stranger = replace(target, proxy=f"http://127.0.0.1:{port}")
            assert await asyncio.to_thread(why, stranger) is None  # that is no matter of TLS
    finally:
        proxy.terminate()
        await proxy.wait()


def test_lines_that_are_not_understood_stop_nothing() -> None:
    program = """
import os
from trellis_kit import stderr
def take(line):
    raise RuntimeError(line)
stderr.divert(take)
for _ in range(200):
    os.write(2, b"x" * 999 + b"\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, timeout=30)
    assert done.returncode == 0
    assert done.stderr.count(b"\n" + b"x" * 999 + b"\n") >= 1
    assert b"was not understood" in done.stderr


async def test_a_peer_that_goes_without_a_word_is_no_warning_and_told_once(pki: World) -> None:
    """gRPC's clients (stock SuperNodes) do that where they do not trust the server; port checks do it, too."""
    roots = grpc.ssl_channel_credentials(pki.theirs.certfile.read_bytes())
    async with watched(serve(pki.ours.server())) as server:
        for _ in range(3):
            async with grpc.aio.secure_channel(server.address, roots) as channel:
                assert not await answered(channel)
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.recv(100)
        await server.until(lambda line: "does not speak TLS" in line["message"])
        told = [line for line in server.lines if "went away during the handshake without a word" in line["message"]]
        assert [line["level"] for line in told] == ["INFO"]


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (lambda pki: pki.theirs.server(), "it does not trust the CA of this port's certificate"),
        (lambda pki: pki.ours.server(days=-1), "to it, this port's certificate has expired"),
        (lambda pki: pki.ours.server(names=("superlink",)), "a name that is not in it: superlink"),
    ],
)
async def test_an_http_port_names_the_cause_too(
    pair: Callable[[World], Pair],
    told: str,
    pki: World,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshakes, "_told", {})  # the same cause is told once a minute, whichever test had it
    context = server_context(serve(pair(pki)))
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(presented, f"{host}:{port}", pki.ours)
        async with asyncio.timeout(10):
            while told not in caplog.text:
                await asyncio.sleep(0.02)


async def test_an_http_port_shows_the_new_certificate(pki: World) -> None:
    pair = pki.ours.server()
    context = server_context(serve(pair))
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        host, port = server.sockets[0].getsockname()
        before = await asyncio.to_thread(presented, f"{host}:{port}", pki.ours)
        put(pki.ours.server("renewed"), pair)
        assert await asyncio.to_thread(presented, f"{host}:{port}", pki.ours) != before


async def test_an_operator_who_asks_grpc_for_more_gets_its_lines(pki: World) -> None:
    program = Path(__file__).with_name("tls_server.py")
    tls = serve(pki.ours.server())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), *map(str, tls.files)),
        env={**os.environ, "GRPC_TRACE": "http", "GRPC_VERBOSITY": "INFO"},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"gRPC Tracers: http" not in await process.stderr.readline():
                pass
    finally:
        process.terminate()
        await process.communicate()


def test_what_else_c_libraries_write_stays_to_be_seen() -> None:
    program = """
import os
from trellis_kit import handshakes, logs, traced
handshakes.listen_in()
logs.setup("test", format="json")
assert "GRPC_TRACE" not in os.environ
os.system("echo from a child >&2")
os.write(2, b"from C\\n")
os.write(2, b"I0101 10:00:00.000000     123 some_file.cc:1] of no interest\\n")
os.write(2, b"F0101 10:00:00.000000     123 some_file.cc:1] Check failed\\n")
import sys
print("from Python", file=sys.stderr)
"""
    read, write = os.pipe()
    with subprocess.Popen([sys.executable, "-c", program], stderr=write) as process:
        os.close(write)
        assert process.wait(20) == 0
    with os.fdopen(read) as lines:
        seen = lines.read()
    for text in ("from a child", "from C", "Check failed", "from Python"):
        assert text in seen
    assert "of no interest" not in seen


RECORD = (
    "I1124 19:43:45.535999   19158 handshaker.cc:155] CallNextHandshakerLocked: error=UNKNOWN: Ssl handshake failed "
    "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid "
    "certificate verification context: OK",
    "=== Source Location Trace: === ",
    "src/core/util/status_helper.cc:68",
    " shutdown=false index=2, args={endpoint=0x1, args={grpc.internal.endpoint_local_address=ipv6:%5B::1%5D:4567, "
    "grpc.internal.endpoint_peer_address=ipv6:%5B::1%5D:44372, grpc.resource_quota=0x2}, exit_early=0}",
    "I1124 19:43:45.536018   19158 channel_trace.h:396] handshake manager 0x1: Failed with error: UNKNOWN",
    "",
)


def test_grpcs_records_are_read_whole() -> None:
    found: list[Failure] = []
    reader = Reader(found.append)
    assert all(reader.take(line) for line in RECORD)
    assert [(one.local, one.peer) for one in found] == [("[::1]:4567", "[::1]:44372")]
    assert meaning(found[0].error, "")[1].startswith("it does not speak TLS")
    assert not reader.take("a line of somebody else")
    assert not reader.take(" shutdown=false of somebody else")
    assert len(found) == 1


def test_a_failure_of_our_own_calls_is_not_told_as_somebody_elses(caplog: pytest.LogCaptureFixture) -> None:
    handshakes.tell(Failure("127.0.0.1:1", "127.0.0.1:2", "UNKNOWN: Tls handshake failed"))
    assert not caplog.records


# ---- certificates that change ----------------------------------------------------------------------------------


def put(pair: Pair, over: Pair) -> None:
    """The files of a pair in place of another's, each at once."""
    for new, old in ((pair.keyfile, over.keyfile), (pair.certfile, over.certfile)):
        new.replace(old)


def presented(address: str, authority: Authority) -> int:
    """The serial number of the certificate that a server shows."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority.certfile))
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        found = connection.getpeercert()
        assert found is not None
        return int(str(found["serialNumber"]), 16)


async def test_a_server_shows_the_new_certificate_and_keeps_its_connections(
    pki: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pair = pki.ours.server()
    async with serving(serve(pair)) as server, open_channel(server.bound, trust(pki.ours), use_proxy=False) as channel:
        watch = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(watch)).status == SERVING
        before = await asyncio.to_thread(presented, server.bound, pki.ours)
        assert await asyncio.to_thread(presented, server.bound, pki.ours) == before
        put(pki.ours.server("renewed"), pair)
        after = await asyncio.to_thread(presented, server.bound, pki.ours)
        assert after != before
        assert "was renewed" in caplog.text
        assert await answered(channel)
        stopping = asyncio.create_task(server.stop(5))
        assert (await anext(watch)).status != SERVING  # the stream is the old one still
        await stopping


async def test_a_half_written_pair_leaves_the_one_before(pki: World, caplog: pytest.LogCaptureFixture) -> None:
    pair = pki.ours.server()
    async with serving(serve(pair)) as server:
        before = await asyncio.to_thread(presented, server.bound, pki.ours)
        new = pki.ours.server("renewed")
        new.keyfile.replace(pair.keyfile)
        for _ in range(3):
            assert await asyncio.to_thread(presented, server.bound, pki.ours) == before
        assert caplog.text.count("cannot be used yet, the one before stays") == 1
        pair.certfile.rename(pair.certfile.with_suffix(".away"))
        assert await asyncio.to_thread(presented, server.bound, pki.ours) == before
        new.certfile.replace(pair.certfile)
        assert await asyncio.to_thread(presented, server.bound, pki.ours) != before


async def test_an_expiring_certificate_is_warned_of(pki: World, caplog: pytest.LogCaptureFixture) -> None:
    for days, level, text in ((-1, "ERROR", "has expired"), (5, "WARNING", "renew it"), (30, None, "")):
        caplog.clear()
        async with serving(serve(pki.ours.server(days=days))):
            told = [(one.levelname, text in one.getMessage()) for one in caplog.records if one.levelno > 20]
            assert told == ([] if level is None else [(level, True)])


async def renewed(channel: Channel, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await answered(channel)
            await asyncio.sleep(0.05)


async def test_a_client_takes_up_new_certificates_and_its_streams_go_on(
    pki: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = pki.ours.client()
    trusted = pki.ours.folder / "trusted.crt"
    trusted.write_bytes(pki.ours.certfile.read_bytes())
    clients = pki.ours.folder / "clients.crt"
    clients.write_bytes(pki.ours.certfile.read_bytes())
    pair = pki.ours.server()
    tls = ServerTls(pair.certfile, pair.keyfile, clients)
    mine = ClientTls(trusted, client.certfile, client.keyfile)
    async with serving(tls) as server, open_channel(server.bound, mine, use_proxy=False) as channel:
        watch = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(watch)).status == SERVING
        # Everything is of the other CA from now on: the server, its clients, and whom we trust.
        put(pki.theirs.server(), pair)
        clients.write_bytes(pki.theirs.certfile.read_bytes())
        trusted.write_bytes(pki.theirs.certfile.read_bytes())
        put(pki.theirs.client(), client)
        await renewed(channel, lambda: "New certificates for connections to" in caplog.text)
        assert await answered(channel)
        assert await asyncio.to_thread(_is_refused, server.bound, pki.ours)
        stopping = asyncio.create_task(server.stop(5))
        assert (await anext(watch)).status != SERVING  # the stream began with the old ones
        await stopping


def _is_refused(address: str, authority: Authority) -> bool:
    try:
        presented(address, authority)
    except ssl.SSLCertVerificationError:
        return True
    return False


async def test_a_client_keeps_its_certificates_while_the_new_ones_do_not_fit(
    pki: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = pki.ours.client()
    async with (
        serving(serve(pki.ours.server(), pki.ours)) as server,
        open_channel(server.bound, trust(pki.ours, client), use_proxy=False) as channel,
    ):
        new = pki.ours.client("renewed")
        new.keyfile.replace(client.keyfile)
        await renewed(channel, lambda: "those before stay" in caplog.text)
        assert await answered(channel)
        new.certfile.replace(client.certfile)
        await renewed(channel, lambda: "New certificates for connections to" in caplog.text)
        assert await answered(channel)
        assert caplog.text.count("those before stay") == 1


# ---- decisions -------------------------------------------------------------------------------------------------


def test_files_that_are_no_certificates_end_a_service_with_a_sentence(pki: World, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    pair, other = pki.ours.server(), pki.ours.server("other")
    for server in (
        ServerTls(pair.certfile, tmp_path / "none"),
        ServerTls(pair.certfile, other.keyfile),
        ServerTls(junk, pair.keyfile),
        ServerTls(pair.certfile, pair.keyfile, junk),
    ):
        with pytest.raises(Fatal, match=r"\.key|none|junk"):
            server_credentials(server)
    for client in (
        ClientTls(tmp_path / "none"),
        ClientTls(junk),
        ClientTls(pki.ours.certfile, pair.certfile, other.keyfile),
        ClientTls(pki.ours.certfile, pair.certfile),
    ):
        with pytest.raises(Fatal):
            client_credentials(client)


FILES = (Path("tls.crt"), Path("tls.key"))


def test_a_server_is_never_plain_by_accident() -> None:
    def decide(insecure: bool, certfile: Path | None = None, keyfile: Path | None = None) -> ServerTls | None:
        return server_tls(insecure=insecure, certfile=certfile, keyfile=keyfile, client_ca=None, flags="--x and --y")

    assert decide(True) is None
    assert decide(False, *FILES) == ServerTls(*FILES)
    for arguments in ((False,), (False, FILES[0]), (False, None, FILES[1])):
        with pytest.raises(Fatal, match=r"Neither TLS nor --insecure is set. Give --x and --y"):
            decide(*arguments)
    with pytest.raises(Fatal, match="not both"):
        decide(True, *FILES)


def test_executors_are_never_anybody_by_accident() -> None:
    ca = Path("ca.crt")

    def decide(
        *,
        insecure: bool = False,
        pair: tuple[Path | None, Path | None] = (None, None),
        client_ca: Path | None = None,
        token: bool = False,
    ) -> ServerTls | None:
        return interior_tls(
            insecure=insecure, certfile=pair[0], keyfile=pair[1], client_ca=client_ca, token=token, flags="--x and --y"
        )

    assert decide(insecure=True) is None
    assert decide(insecure=True, token=True) is None
    assert decide(pair=FILES, token=True) == ServerTls(*FILES)
    assert decide(pair=FILES, client_ca=ca) == ServerTls(*FILES, ca)
    assert decide(insecure=True, pair=FILES, client_ca=ca) == ServerTls(*FILES, ca)
    with pytest.raises(Fatal, match="Neither TLS nor --appio-insecure"):
        decide(token=True)
    with pytest.raises(Fatal, match="give --executor-ca-certfile"):
        decide(pair=FILES)
    with pytest.raises(Fatal, match="belong together"):
        decide(pair=(FILES[0], None), token=True)
    with pytest.raises(Fatal, match="needs --x and --y"):
        decide(insecure=True, client_ca=ca)
