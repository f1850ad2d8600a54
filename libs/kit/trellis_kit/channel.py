"""Connections to a gRPC server that outlive their certificates, and say what is wrong with TLS when there is something.

A gRPC channel keeps the certificates that it was made with, also over reconnects. This one looks at their files and
makes a new channel once they have changed: calls that begin then use it, those under way end on the one before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import grpc

from trellis_kit.lifecycle import Fatal
from trellis_kit.probe import Target, why
from trellis_kit.tls import ClientTls, client_credentials, proxy_for, stamp

_log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 2**31 - 1
"""Bytes of the largest message that a client takes, as stock peers do (Flower 1.20-1.42)."""

_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A peer that is gone without a word is noticed within a minute; stock servers refuse pings more often than this.
    ("grpc.keepalive_time_ms", 210_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_LOOK_SECONDS: Final = 1.0  # between two looks at the files
_PROBE_SECONDS: Final = 5.0  # between two probes
_RETIRED_SECONDS: Final = 365 * 86400.0  # as long as a call that is under way may take


def open_channel(
    address: str,
    tls: ClientTls | None,
    *,
    use_proxy: bool = True,
    options: Sequence[tuple[str, object]] = (),
) -> Channel:
    """A channel to host:port; `tls` None is a plain connection. Raises Fatal for certificates that cannot be read.

    With `use_proxy` the connection goes through HTTPS_PROXY unless NO_PROXY excludes the host.
    """
    return Channel(Target(address, tls, proxy_for(address) if use_proxy else None), options)


class Channel(grpc.aio.Channel):
    """A grpc.aio.Channel; `explain` says why it does not connect."""

    def __init__(self, target: Target, options: Sequence[tuple[str, object]]) -> None:
        self._target = target
        proxying: tuple[tuple[str, object], ...] = (("grpc.enable_http_proxy", 0),)
        if target.proxy is not None:
            proxying = (("grpc.enable_http_proxy", 1), ("grpc.http_proxy", target.proxy))
        self._options = [*_OPTIONS, *proxying, *options]
        self._stamp = () if target.tls is None else stamp(target.tls.files)
        self._channel = self._made()
        self._looked = time.monotonic()
        self._retired: dict[grpc.aio.Channel, asyncio.Task[None]] = {}
        self._told: str | None = None
        self._probed = -_PROBE_SECONDS
        self._cause: str | None = None

    def _made(self) -> grpc.aio.Channel:
        tls = self._target.tls
        if tls is None:
            return grpc.aio.insecure_channel(self._target.address, options=self._options)
        return grpc.aio.secure_channel(self._target.address, client_credentials(tls), options=self._options)

    def _current(self) -> grpc.aio.Channel:
        now = time.monotonic()
        if self._target.tls is not None and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._renew(self._target.tls)
        return self._channel

    def _renew(self, tls: ClientTls) -> None:
        try:
            seen = stamp(tls.files)
            if seen == self._stamp:
                return
            made = self._made()
        except (Fatal, OSError) as problem:  # half-written; the next look finds the rest
            if str(problem) != self._told:
                _log.warning("The changed certificates cannot be used yet, those before stay: %s", problem)
            self._told = str(problem)
            return
        _log.info("New certificates for connections to %s", self._target.address)
        before, self._channel, self._stamp, self._told = self._channel, made, seen, None
        retiring = asyncio.get_running_loop().create_task(before.close(_RETIRED_SECONDS))
        self._retired[before] = retiring
        retiring.add_done_callback(lambda _: self._retired.pop(before, None))

    async def explain(self) -> str | None:
        """What stands against a TLS connection, in words; None where that is not the trouble. Takes up to some seconds.

        The server hears it, too: see `probe`. Asked again within 5 s it says what it said.
        """
        now = time.monotonic()
        if now - self._probed >= _PROBE_SECONDS:
            self._probed = now
            self._cause = await asyncio.to_thread(why, self._target)
        return self._cause

    # ---- what a channel offers -----------------------------------------------------------------------------

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Calls under way get `grace` seconds."""
        await asyncio.gather(*(one.close(grace) for one in (self._channel, *self._retired)))
        await asyncio.gather(*self._retired.values(), return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._current().channel_ready()

    def _method(self, kind: str, name: str, *args: Any, **keywords: Any) -> Any:
        known: list[Any] = [None, None]  # the channel that the callable belongs to, and the callable

        def call(*request: Any, **options: Any) -> Any:
            channel = self._current()
            if known[0] is not channel:
                known[:] = channel, getattr(channel, kind)(name, *args, **keywords)
            return known[1](*request, **options)

        return call

    def unary_unary(self, method: str, *args: Any, **keywords: Any) -> Any:
        return self._method("unary_unary", method, *args, **keywords)

    def unary_stream(self, method: str, *args: Any, **keywords: Any) -> Any:
        return self._method("unary_stream", method, *args, **keywords)

    def stream_unary(self, method: str, *args: Any, **keywords: Any) -> Any:
        return self._method("stream_unary", method, *args, **keywords)

    def stream_stream(self, method: str, *args: Any, **keywords: Any) -> Any:
        return self._method("stream_stream", method, *args, **keywords)
