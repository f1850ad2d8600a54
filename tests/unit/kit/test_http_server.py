"""The doors of the HTTP server, over real sockets: who gets in, who has to go, and what is no request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import re
import socket
import ssl
import struct
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pki import Authority, serve, trust
from trellis_kit import http_server
from trellis_kit.http_server import BreakOff, HttpServer, listen
from trellis_kit.tls import ServerTls, client_context

SECONDS = 20.0
PING = b"GET /ping HTTP/1.1\r\nhost: here\r\n\r\n"
LARGE = 64 * 1024 * 1024  # more than what the system keeps between two ends


@dataclass
class App:
    """Answers each request with its body, or as its path says."""

    seen: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.seen.append(path)
        if path == "/fails":
            raise RuntimeError("what nobody expected")
        if path == "/early":
            await _answer(send, b"early")
            return
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.left.set()
                return
            body, more = body + event["body"], event["more_body"]
        if path == "/held":
            await self.gate.wait()
        if path in ("/broken", "/fails-late"):
            await _answer(send, b"half", more=True)
            raise BreakOff if path == "/broken" else RuntimeError("too late")
        await _answer(send, bytes(LARGE) if path == "/large" else body)


async def _answer(send: Any, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body, "more_body": more})


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def get(self, path: str = "/ping", body: bytes = b"") -> tuple[int, bytes]:
        self.writer.write(
            b"POST %s HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
        )
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        """The next answer's status and body."""
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        async with asyncio.timeout(SECONDS):
            data = b""
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while more := await self.reader.read(1 << 16):
                    data += more
            return data


@dataclass
class World:
    app: App
    server: HttpServer
    stack: contextlib.AsyncExitStack
    context: ssl.SSLContext | None = None

    async def client(self, *, handshake: bool = True) -> Client:
        host, _, port = self.server.bound.rpartition(":")
        context = self.context if handshake else None
        client = Client(*await asyncio.open_connection(host, int(port), ssl=context))
        self.stack.callback(client.writer.close)
        return client

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.sleep(0.01)


Start = Callable[..., Awaitable[World]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:

        async def started(*, connections: int = 100, tls: bool = False) -> World:
            authority = Authority(tmp_path, "ca") if tls else None
            its: ServerTls | None = None if authority is None else serve(authority.server())
            app = App()
            server = HttpServer("test", "127.0.0.1:0", app, tls=its, flag="--port", connections=connections)
            await server.start()
            stack.push_async_callback(server.stop, 1)
            world = World(app, server, stack)
            if authority is not None:
                world.context = client_context(trust(authority))
            return world

        yield started


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(http_server, "HEAD", 0.4)
    monkeypatch.setattr(http_server, "STALL", 0.4)
    return 0.4


async def dribble(client: Client, data: bytes) -> bytes:
    """Sends byte by byte, without end, until the server has closed; what it said."""

    async def sending() -> None:
        for byte in data:
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        while True:
            client.writer.write(b"x")
            await asyncio.sleep(0.02)

    task = asyncio.create_task(sending())
    try:
        return await client.rest()
    finally:
        task.cancel()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_who_says_nothing_has_to_go(start: Start, impatient: float, tls: bool) -> None:
    world = await start(tls=tls)
    silent = [await world.client(), await world.client(handshake=False)]
    for client in silent:
        assert await client.rest() == b""
    assert (await (await world.client()).get(body=b"abc")) == (200, b"abc")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_head_that_does_not_end_ends_its_connection(start: Start, impatient: float, tls: bool) -> None:
    world = await start(tls=tls)
    began = time.monotonic()
    assert await dribble(await world.client(), b"GET / HTTP/1.1\r\nx: ") == b""
    assert time.monotonic() - began >= impatient
    again = await world.client()
    assert await again.get() == (200, b"")
    assert await dribble(again, b"GET / HTTP/1.1\r\nx: ") == b""
    assert world.app.seen == ["/ping"]


async def test_between_two_requests_and_within_one_there_is_more_time(start: Start, impatient: float) -> None:
    world = await start()
    client = await world.client()
    assert await client.get() == (200, b"")
    await asyncio.sleep(3 * impatient)
    held = asyncio.create_task(client.get("/held", b"abc"))
    await asyncio.sleep(3 * impatient)
    world.app.gate.set()
    assert await held == (200, b"abc")
    assert await client.get() == (200, b"")


async def test_a_body_that_nobody_wants_any_more_keeps_no_connection(start: Start, impatient: float) -> None:
    world = await start()
    client = await world.client()
    client.writer.write(b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 1000000\r\n\r\n")
    assert await client.answer() == (200, b"early")
    assert await dribble(client, b"body") == b""


async def test_an_answer_that_nobody_reads_is_given_up(start: Start, impatient: float) -> None:
    world = await start()
    client = await world.client()
    client.writer.write(PING.replace(b"ping", b"large"))
    await world.until(lambda: world.app.seen)
    await world.until(lambda: len(world.server._guests) == 0)
    assert len(await client.rest()) < LARGE


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_end_does_not_wait_for_the_idle(start: Start, tls: bool) -> None:
    world = await start(tls=tls)
    clients = [await world.client(), await world.client(), await world.client(handshake=False)]
    await clients[0].get()
    began = time.monotonic()
    await world.server.stop(60)
    assert time.monotonic() - began < 10
    for client in clients:
        assert await client.rest() == b""


# ---- room ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_longest_idle_gives_way(start: Start, caplog: pytest.LogCaptureFixture, tls: bool) -> None:
    world = await start(connections=4, tls=tls)
    working, unfinished, resting = [await world.client() for _ in range(3)]
    held = asyncio.create_task(working.get("/held"))
    unfinished.writer.write(b"GET / HTT")
    await world.until(lambda: world.app.seen)
    silent = await world.client(handshake=False)
    assert await resting.get() == (200, b"")  # so it has been idle for a shorter time than the others
    await world.until(lambda: len(world.server._guests) == 4)
    for gives_way in (unfinished, silent, resting):
        assert (await (await world.client()).get(body=b"new")) == (200, b"new")
        assert await gives_way.rest() == b""
    world.app.gate.set()
    assert await held == (200, b"")
    assert [one.getMessage() for one in caplog.records].count(
        "test: There are 4 connections, the most that are taken; idle ones give way"
    ) == 1


async def test_where_all_work_nobody_else_comes_in(start: Start) -> None:
    world = await start(connections=2)
    clients = [await world.client() for _ in range(2)]
    held = [asyncio.create_task(client.get("/held")) for client in clients]
    await world.until(lambda: len(world.app.seen) == 2)
    refused = await world.client()
    assert await refused.rest() == b""
    world.app.gate.set()
    assert await asyncio.gather(*held) == [(200, b"")] * 2
    assert await (await world.client()).get() == (200, b"")


async def test_who_leaves_leaves_room(start: Start) -> None:
    world = await start(connections=3, tls=True)
    for _ in range(5):
        good, rude, plain = await world.client(), await world.client(), await world.client(handshake=False)
        await good.get()
        plain.writer.write(PING)  # no TLS
        await plain.rest()
        rude.writer.transport.abort()
        good.writer.close()
        await world.until(lambda: len(world.server._guests) == 0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_who_leaves_leaves_nothing(start: Start, tls: bool) -> None:
    world = await start(tls=tls)
    await (await world.client()).get()  # what is made once
    gc.collect()
    gc.disable()  # a crowd that comes and goes must not have to be searched for
    try:
        good, rude, silent = await world.client(), await world.client(), await world.client(handshake=False)
        for client in (good, rude):
            await client.get()
        known = [weakref.ref(one) for one in world.server._guests._idle]
        assert len(known) == 4
        linger = struct.pack("ii", 1, 0)  # closes with a reset
        rude.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        for client in (good, rude, silent):
            client.writer.transport.abort()
        await world.until(lambda: [one() for one in known].count(None) == 3)
    finally:
        gc.enable()


async def test_a_crowd_does_not_keep_others_out(start: Start) -> None:
    world = await start(connections=50)
    for _ in range(10):
        for _ in range(40):
            await world.client()
        assert await (await world.client()).get(body=b"honest") == (200, b"honest")
    assert len(world.server._guests) <= 50


# ---- what is no request ----------------------------------------------------------------------------------------------

SMUGGLED = b"POST /smuggled HTTP/1.1\r\nhost: here\r\ncontent-length: 0\r\n\r\n"
CHUNKED = b"POST /ping HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n"


def post(*lines: bytes) -> bytes:
    return b"\r\n".join((b"POST /ping HTTP/1.1", b"host: here", *lines, b"", b""))


UNCLEAR = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two kinds of length": post(b"content-length: 4", b"transfer-encoding: chunked") + b"0\r\n\r\n" + SMUGGLED,
    "the other way round": post(b"transfer-encoding: chunked", b"content-length: 4") + b"0\r\n\r\n" + SMUGGLED,
    "two lengths": post(b"content-length: 0", b"content-length: 64") + SMUGGLED,
    "two lengths in one": post(b"content-length: 0, 64") + SMUGGLED,
    "a signed length": post(b"content-length: +64") + SMUGGLED,
    "a negative length": post(b"content-length: -1") + SMUGGLED,
    "a length in hex": post(b"content-length: 0x40") + SMUGGLED,
    "a length without an end": post(b"content-length: " + b"9" * 30) + SMUGGLED,
    "a folded line": post(b"x: a", b" content-length: 64") + SMUGGLED,
    "a folded encoding": post(b"transfer-encoding:", b" chunked") + b"0\r\n\r\n" + SMUGGLED,
    "a bare LF": post(b"x: a\ncontent-length: 64") + SMUGGLED,
    "LFs only": post(b"content-length: 0").replace(b"\r", b"") + SMUGGLED,
    "a bare CR": post(b"x: a\rcontent-length: 64") + SMUGGLED,
    "a space before the colon": post(b"content-length : 64") + SMUGGLED,
    "a name with a control character": post(b"content-length\x0b: 64") + SMUGGLED,
    "a name that is none": post(b": 64") + SMUGGLED,
    "a NUL": post(b"x: a\0b") + SMUGGLED,
    "no host": b"POST /ping HTTP/1.1\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "two hosts": post(b"host: there") + SMUGGLED,
    "a space in the path": b"GET /ping HTTP/1.1 HTTP/1.1\r\nhost: here\r\n\r\n" + SMUGGLED,
    "a chunk's size with a sign": CHUNKED + b"\r\n+0\r\n\r\n" + SMUGGLED,
    "a chunk's size in C": CHUNKED + b"\r\n0x0\r\n\r\n" + SMUGGLED,
    "a chunk's size without an end": CHUNKED + b"\r\n" + b"0" * 25 + b"\r\n\r\n" + SMUGGLED,
    "a chunk's size with a bare LF": CHUNKED + b"\r\n0\n\r\n" + SMUGGLED,
    "a chunk's extension with a bare LF": CHUNKED + b"\r\n1;a\nb\r\nx\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk that is longer than it says": CHUNKED + b"\r\n1\r\nxyz\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk that ends with LF": CHUNKED + b"\r\n1\r\nx\n0\r\n\r\n" + SMUGGLED,
    "a head without an end": b"GET /ping HTTP/1.1\r\nhost: here\r\n" + b"x: y\r\n" * 4000,
    "a line without an end": b"GET /" + b"x" * 20_000,
}
STATUS = {"HTTP/2": 505, "a head without an end": 431, "a line without an end": 431}
ENCODINGS = [b"gzip", b"chunked, gzip", b"gzip, chunked", b"identity", b"xchunked", b"\x0bchunked", b"chunked\x00"]


def statuses(said: bytes) -> list[int]:
    """Of all answers in it."""
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]


@pytest.mark.parametrize("name", UNCLEAR)
async def test_what_could_be_read_in_two_ways_is_not_served(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    world = await start()
    client = await world.client()
    client.writer.write(UNCLEAR[name])
    said = await client.rest()
    assert statuses(said) == [STATUS.get(name, 400)], said
    assert json.loads(said.partition(b"\r\n\r\n")[2])["detail"].startswith("This is no request: ")
    assert "/smuggled" not in world.app.seen
    (line,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert line.getMessage().startswith("HTTP request refused: ")
    assert len(line.getMessage()) < 300
    assert line.exc_info is None
    assert line.peer.startswith("http:127.0.0.1:")  # type: ignore[attr-defined]
    assert await (await world.client()).get() == (200, b"")


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_encodings_that_are_not_known(start: Start, encoding: bytes) -> None:
    world = await start()
    client = await world.client()
    client.writer.write(post(b"transfer-encoding: " + encoding) + b"0\r\n\r\n" + SMUGGLED)
    said = await client.rest()
    assert statuses(said) in ([400], [501])
    assert world.app.seen == []


async def test_requests_in_a_row_are_answered_in_their_order(start: Start) -> None:
    world = await start()
    client = await world.client()
    client.writer.write(b"".join(post(b"content-length: 1") + b"%d" % n for n in range(10)))
    client.writer.write(CHUNKED + b"\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nx: trailer\r\n\r\n" + SMUGGLED)
    assert [await client.answer() for _ in range(12)] == [
        *((200, b"%d" % n) for n in range(10)),
        (200, b"abc"),
        (200, b""),
    ]
    assert world.app.seen[-1] == "/smuggled"  # openly, that is


async def test_a_body_that_goes_wrong_under_way(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    world = await start()
    client = await world.client()
    client.writer.write(CHUNKED + b"\r\n1\r\nx\r\n")
    await world.until(lambda: world.app.seen)
    client.writer.write(b"no chunk\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    await asyncio.wait_for(world.app.left.wait(), SECONDS)
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1


async def test_an_upgrade_is_passed_over(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    world = await start()
    client = await world.client()
    for upgrade in (b"h2c", b"websocket"):
        client.writer.write(post(b"connection: upgrade", b"upgrade: " + upgrade, b"content-length: 0"))
        assert await client.answer() == (200, b"")
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


# ---- what goes wrong here --------------------------------------------------------------------------------------------


async def test_an_error_of_ours_is_an_answer_and_one_line(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    world = await start()
    client = await world.client()
    assert await client.get("/fails") == (500, b'{"detail": "Internal server error."}')
    (line,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert line.getMessage() == "POST /fails failed"
    assert line.exc_info is not None
    assert "what nobody expected" in str(line.exc_info[1])


@pytest.mark.parametrize(("path", "lines"), [("/broken", 0), ("/fails-late", 1)])
async def test_an_answer_that_cannot_end_is_cut(
    start: Start, caplog: pytest.LogCaptureFixture, path: str, lines: int
) -> None:
    world = await start()
    client = await world.client()
    client.writer.write(f"GET {path} HTTP/1.1\r\nhost: here\r\n\r\n".encode())
    await client.rest()
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == lines
    await world.until(lambda: len(world.server._guests) == 0)


def test_the_body_of_an_answer_does_not_wait_for_its_head_to_be_confirmed() -> None:
    with listen("127.0.0.1:0", "test", "--test") as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
