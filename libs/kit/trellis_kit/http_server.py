"""An HTTP server inside a service's own event loop.

uvicorn speaks HTTP; here are the doors before it: who is let in, for how long somebody may say nothing, and which
requests are not clear enough to be served at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import resource
import socket
import sys
import time
from asyncio.sslproto import SSLProtocol
from http import HTTPStatus
from ssl import SSLContext
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from trellis_kit.lifecycle import Fatal
from trellis_kit.moves import end_when_moved
from trellis_kit.tls import ServerTls, server_context

_log = logging.getLogger(__name__)
_errors = logging.getLogger(f"{__name__}.errors")  # what uvicorn warns of is told here, with its cause
_errors.setLevel(logging.ERROR)

_BACKLOG: Final = 2048
_QUIET_SECONDS: Final = 60.0  # between two lines that say that connections are many

IDLE: Final = 75
"""Seconds that a connection stays open between two requests; clients' own pools keep less."""
HEAD: Final = 20.0
"""Seconds in which a request's head has to be here, from the connection's first moment (with its TLS handshake) or from
the head's first byte."""
HEAD_BYTES: Final = 16 * 1024
"""The largest head."""
STALL: Final = 120.0
"""Seconds for which a peer may leave an answer unread before its connection is closed."""
TLS_BUFFER: Final = 64 * 1024
"""Bytes that each TLS connection has for what comes in; asyncio's own 256 KiB would be 1 GiB with all connections."""
CONNECTIONS: Final = 4096
"""Connections at most, where the process may have four times as many descriptors (else a quarter of those)."""


class BreakOff(Exception):
    """Raised by an application in the midst of an answer that cannot be brought to its end: the connection is cut."""


class _Clear(h11.Connection):
    """Refuses heads that other programs on the way may read differently: where does the next request begin?"""

    _UNCLEAR = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\r\n[ \t]")

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE and self._UNCLEAR.search(self.trailing_data[0].partition(b"\r\n\r\n")[0]):
            raise h11.RemoteProtocolError("a line of the head is folded, or does not end with CR LF")
        event = super().next_event()
        if isinstance(event, h11.Request):
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("only HTTP/1.1 is spoken here", error_status_hint=505)
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("a body has one length, not Content-Length and Transfer-Encoding")
        return event


class _Connection(H11Protocol):
    """One connection from the moment that it is accepted. It is idle when no request of it is being answered."""

    def __init__(self, *, guests: _Guests, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.conn = _Clear(h11.SERVER, HEAD_BYTES)
        self.logger = _errors
        self._guests = guests
        self._application: Any = self.app
        self.app = self._serve
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._arriving: asyncio.Task[Any] | None = None
        self.arrived = False
        """Whether its TLS handshake is over."""

    def arrive(self, accepted: socket.socket, tls: SSLContext | None) -> None:
        """Begin with what was accepted; a handshake that fails is told of by the context."""

        def arrived(task: asyncio.Task[Any]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                error.__traceback__ = None  # its frames would keep all of this
            if not self.arrived:
                self._leave()
                self._forget()
                accepted.close()
            elif task.cancelled() or error is not None:
                self.end()

        self._guests.rests(self)
        self._within(HEAD)
        arriving = self.loop.connect_accepted_socket(lambda: self, accepted, ssl=tls)
        self._arriving = self.loop.create_task(arriving)
        self._arriving.add_done_callback(arrived)

    def end(self) -> None:
        """Close at once, without waiting for anything of the peer."""
        self._leave()
        if self.arrived:
            self.transport.abort()
        elif self._arriving is not None:
            self._arriving.cancel()

    def _leave(self) -> None:
        self._guests.remove(self)
        self._within(None)
        self._stall(None)

    def _forget(self) -> None:
        """Leaves no circle behind, so that the memory is free at once."""
        self.app, self._arriving = self._application, None

    def _within(self, seconds: float | None) -> None:
        """What is awaited has to come in this time."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.end)

    def _stall(self, seconds: float | None) -> None:
        """The same for what has to be taken."""
        if self._stalled is not None:
            self._stalled.cancel()
        self._stalled = None if seconds is None else self.loop.call_later(seconds, self.end)

    @property
    def _busy(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not (cycle.response_complete or cycle.disconnected)

    # ---- what uvicorn and the transport tell

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.arrived = True
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._unset_keepalive_if_required()  # uvicorn leaves it where the peer broke off
        super().connection_lost(exc)
        self._forget()

    def data_received(self, data: bytes) -> None:
        if not self._busy and self._deadline is None:
            self._within(HEAD)
        super().data_received(data)
        if self._busy:
            self._within(None)
            self._guests.works(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # takes up the next request, where that is here already
        if not self._busy:
            self._rest()

    def _rest(self) -> None:
        self._guests.rests(self)
        if self.transport.is_closing():
            self._within(STALL)
        elif self.conn.trailing_data[0]:
            self._within(HEAD)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall(STALL)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall(None)

    def shutdown(self) -> None:
        if self._busy or self.transport.get_write_buffer_size():
            super().shutdown()
        else:
            self.end()

    def _should_upgrade(self) -> bool:
        return False  # there is nothing to upgrade to, so that is passed over

    # ---- what is answered here

    def send_400_response(self, msg: str) -> None:
        """Called while the error is handled that says what is wrong with the request."""
        error = sys.exc_info()[1]
        cause = _short(str(error) or msg)
        _log.warning("HTTP request refused: %s", cause, extra={"listener": self._guests.name, "peer": self._peer()})
        begun = self._busy and self.cycle.response_started
        self._disown()
        if not begun and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = getattr(error, "error_status_hint", 400)
            body = json.dumps({"detail": f"This is no request: {cause}."}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            answer = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._rest()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """The application, whose errors become an answer and one line in the log."""
        cycle = self.cycle
        try:
            await self._application(scope, receive, send)
        except BreakOff:
            self._disown()
            self.end()
        except Exception:
            _log.exception(
                "%s %s failed",
                scope["method"],
                _short(scope["path"]),
                extra={"listener": self._guests.name, "peer": self._peer()},
            )
            if cycle.response_complete:
                return
            if cycle.response_started:
                self._disown()
                self.end()
                return
            body = b'{"detail": "Internal server error."}'
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": 500, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _disown(self) -> None:
        """A request under way gets no answer any more; to its application, the peer has left."""
        if self._busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _peer(self) -> str:
        return "unknown" if self.client is None else f"http:{self.client[0]}:{self.client[1]}"


def _short(text: str) -> str:
    cut = text if len(text) <= 200 else text[:200] + "..."
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in cut)


class _Guests:
    """The connections of a server. When there are too many, those give way first that have been idle for longest."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self._idle: dict[_Connection, None] = {}  # in the order in which they became so
        self._working: set[_Connection] = set()
        self._given_way = 0
        self._told = -_QUIET_SECONDS

    def __len__(self) -> int:
        return len(self._idle) + len(self._working)

    def room(self) -> bool:
        """Whether one more may come in; sees to it, if it can."""
        if len(self) < self.limit:
            return True
        self._tell(f"There are {len(self):,} connections, the most that are taken; idle ones give way")
        return self.give_way()

    def give_way(self) -> bool:
        """Ends the connection that has been idle for longest; False where there is none."""
        for connection in self._idle:
            connection.end()
            self._given_way += 1
            return True
        return False

    def short_of_descriptors(self, error: OSError) -> None:
        """Ends the same, to have a descriptor again."""
        self._tell(f"No connection can be taken ({os.strerror(error.errno or 0)}); idle ones give way")
        self.give_way()

    def _tell(self, what: str) -> None:
        if time.monotonic() - self._told >= _QUIET_SECONDS:
            self._told = time.monotonic()
            _log.warning("%s: %s", self.name, what, extra={"listener": self.name, "given_way": self._given_way})

    def rests(self, connection: _Connection) -> None:
        self._working.discard(connection)
        self._idle[connection] = None

    def works(self, connection: _Connection) -> None:
        if connection in self._idle:
            del self._idle[connection]
            self._working.add(connection)

    def remove(self, connection: _Connection) -> None:
        self._idle.pop(connection, None)
        self._working.discard(connection)

    def end_arriving(self) -> None:
        """Ends those that uvicorn does not know yet."""
        for connection in [one for one in self._idle if not one.arrived]:
            connection.end()


class _Server(uvicorn.Server):
    """Takes its connections itself, so that each counts from its first moment, its TLS handshake included."""

    def __init__(self, config: uvicorn.Config, guests: _Guests, tls: SSLContext | None) -> None:
        super().__init__(config)
        self._guests = guests
        self._tls = tls
        self._accepting: list[asyncio.Task[None]] = []

    def capture_signals(self) -> Any:
        """Signals belong to the service, not to this server."""
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []
        self._accepting = [asyncio.create_task(self._accept(one)) for one in sockets or ()]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.wait(self._accepting)
        self._guests.end_arriving()
        await super().shutdown(sockets)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except ConnectionError:  # it left meanwhile
                continue
            except OSError as error:
                self._guests.short_of_descriptors(error)
                await asyncio.sleep(0.05)
                continue
            if self._guests.room():
                _Connection(
                    guests=self._guests, config=self.config, server_state=self.server_state, app_state={}
                ).arrive(accepted, self._tls)
            else:
                accepted.close()
            await asyncio.sleep(0)  # those that are in go on meanwhile


def listen(address: str, what: str, flag: str) -> socket.socket:
    """A listening socket at host:port. Raises Fatal, naming the flag, for an address that cannot be had."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    try:  # [::] means both families, as for gRPC
        listening = socket.create_server(
            (host, int(port)), family=family, backlog=_BACKLOG, dualstack_ipv6=six and socket.has_dualstack_ipv6()
        )
        # Inherited by what is accepted. Else an answer's body waits 40 ms for the peer to confirm its head (Nagle), as
        # asyncio does not take a socket made this way for one of TCP.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise Fatal(
            f"Cannot listen on {address} ({what}): {os.strerror(error.errno or 0)}; give another {flag}."
        ) from error


class HttpServer:
    """Serves an ASGI application at host:port; `bound` has the real port from `start` on."""

    def __init__(
        self, name: str, address: str, app: Any, *, tls: ServerTls | None, flag: str, connections: int = CONNECTIONS
    ) -> None:
        """`flag` is the one with which the operator chose the address."""
        self.name = name
        self._tls = None if tls is None else server_context(tls)
        SSLProtocol.max_size = min(SSLProtocol.max_size, TLS_BUFFER)
        self._address = address
        self._app = app
        self._flag = flag
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if descriptors != resource.RLIM_INFINITY:
            connections = min(connections, descriptors // 4)
        self._guests = _Guests(name, connections)
        self.bound = address
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._moves: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and serve. Raises Fatal for an address that is taken."""
        listening = listen(self._address, self.name, self._flag)  # from now on connections wait
        self.bound = f"{self._address.rpartition(':')[0]}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            interface="asgi3",
            http="h11",
            ws="none",
            timeout_keep_alive=IDLE,
        )
        self._server = _Server(config, self._guests, self._tls)
        self._task = asyncio.create_task(self._server.serve([listening]), name=self.name)
        self._moves = asyncio.create_task(end_when_moved(self.bound), name=f"{self.name}-moves")
        _log.info(
            "%s listens on %s%s",
            self.name,
            self.bound,
            "" if self._tls else " without TLS",
            extra={"listener": self.name, "address": self.bound},
        )

    async def stop(self, grace: float) -> None:
        """Close the port; requests under way get `grace` seconds."""
        if self._moves is not None:
            self._moves.cancel()
        if self._server is not None and self._task is not None:
            self._server.config.timeout_graceful_shutdown = max(1, round(grace))
            self._server.should_exit = True
            await self._task
