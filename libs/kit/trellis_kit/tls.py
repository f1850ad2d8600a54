"""TLS on both sides of a connection, and the way out through a site's HTTP proxy."""

import ipaddress
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from trellis_kit.lifecycle import Fatal
from trellis_kit.settings import split_address

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerTls:
    """A listener's certificate chain and key (PEM files); `client_ca` makes clients show a certificate of that CA."""

    certfile: Path
    keyfile: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class ClientTls:
    """What a client trusts (PEM; None: the public roots), and the certificate that it shows where one is asked for."""

    root_certificates: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None


def choose_server_tls(
    *, insecure: bool, certfile: Path | None, keyfile: Path | None, client_ca: Path | None = None
) -> ServerTls | None:
    """The listener's TLS, None for plain text; nobody gets plain text without having asked for it (Fatal)."""
    if certfile is not None and keyfile is not None:
        if insecure:
            raise Fatal("--insecure contradicts the certificate and key that are given: leave one of them out")
        return ServerTls(certfile, keyfile, client_ca)
    if certfile is not None or keyfile is not None:
        raise Fatal("A certificate needs its key and a key its certificate: give both files")
    if client_ca is not None:
        raise Fatal("Client certificates can be asked for over TLS only: give a certificate and a key as well")
    if not insecure:
        raise Fatal("Give a certificate and its key for TLS, or --insecure to go without")
    return None


def choose_client_tls(
    *, insecure: bool, root_certificates: Path | None, certfile: Path | None = None, keyfile: Path | None = None
) -> ClientTls | None:
    """The client's TLS, None for plain text; contradictions are Fatal."""
    if insecure:
        if root_certificates is not None or certfile is not None:
            raise Fatal("--insecure contradicts the certificates that are given: leave one of them out")
        return None
    if (certfile is None) != (keyfile is None):
        raise Fatal("A certificate needs its key and a key its certificate: give both files")
    return ClientTls(root_certificates, certfile, keyfile)


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials that are read again when the files change, so that a renewed certificate needs no restart.

    Raises Fatal when the files cannot be read.
    """
    reader = _Reader(tls)
    return grpc.dynamic_ssl_server_credentials(  # type: ignore[no-any-return]
        reader.first(), reader.fetch, require_client_authentication=tls.client_ca is not None
    )


class _Reader:
    """Reads a listener's files when a handshake finds them changed; called from gRPC's own threads."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._files = [path for path in (tls.certfile, tls.keyfile, tls.client_ca) if path is not None]
        self._stamp: object = None
        self._lock = threading.Lock()

    def first(self) -> Any:
        try:
            self._stamp = self._current()
            return self._read()
        except OSError as error:
            raise Fatal(f"Cannot read {error.filename}: {error.strerror}") from error

    def fetch(self) -> Any:
        """The new configuration, or None while the present one is right."""
        with self._lock:
            try:
                stamp = self._current()
                if stamp == self._stamp:
                    return None
                configuration = self._read()
            except OSError as error:
                _log.warning("The certificate stays as it was: cannot read %s (%s)", error.filename, error.strerror)
                return None
            self._stamp = stamp
            _log.info("The certificate was read again", extra={"certfile": str(self._tls.certfile)})
            return configuration

    def _current(self) -> object:
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in (path.stat() for path in self._files)]

    def _read(self) -> Any:
        pair = (self._tls.keyfile.read_bytes(), self._tls.certfile.read_bytes())
        roots = None if self._tls.client_ca is None else self._tls.client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def client_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """Credentials for a new channel; OSError when a file cannot be read."""

    def read(path: Path | None) -> bytes | None:
        return None if path is None else path.read_bytes()

    return grpc.ssl_channel_credentials(read(tls.root_certificates), read(tls.keyfile), read(tls.certfile))


def open_channel(
    address: str,
    tls: ClientTls | None,
    *,
    options: Sequence[tuple[str, Any]] = (),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    environ: Mapping[str, str] = os.environ,
) -> grpc.aio.Channel:
    """A channel to `address` that notices a dead peer and goes through the site's proxy where one is set."""
    proxy = proxy_for(address, environ)
    merged: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC's own reconnects stay quick: the wait between attempts is ours (trellis_kit.retry).
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        *([("grpc.enable_http_proxy", 0)] if proxy is None else [("grpc.http_proxy", proxy)]),
        *options,
    ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=merged, interceptors=interceptors)
    return grpc.aio.secure_channel(address, client_credentials(tls), options=merged, interceptors=interceptors)


def proxy_for(address: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The HTTP proxy (`http://[user:password@]host:port`) that leads to `address`, or None for the direct way.

    HTTPS_PROXY names it, with or without TLS to the peer, in either case; NO_PROXY lists host names (with everything below
    them), addresses, networks or `*`. Loopback is always direct.
    """
    proxy = environ.get("https_proxy") or environ.get("HTTPS_PROXY")
    if not proxy:
        return None
    try:
        host, port = split_address(address)
    except ValueError:
        return None  # not TCP, for example unix:
    if _is_excepted(host.lower(), port, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme != "http":
        raise Fatal(f"HTTPS_PROXY is {url.scheme}://...: only proxies that are spoken to by http:// are supported")
    return url.geturl()


def _is_excepted(host: str, port: int, no_proxy: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        ip = None
    if host == "localhost" or (ip is not None and ip.is_loopback):
        return True
    for entry in (part.strip().lower() for part in no_proxy.split(",")):
        if not entry:
            continue
        if entry == "*" or entry == f"{host}:{port}":
            return True
        if ip is not None:
            try:
                if ip in ipaddress.ip_network(entry, strict=False):
                    return True
            except ValueError:
                continue  # a name, which no address matches
        else:
            name = entry.removeprefix("*").lstrip(".")
            if name and (host == name or host.endswith("." + name)):
                return True
    return False
