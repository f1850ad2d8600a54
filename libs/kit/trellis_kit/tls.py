"""TLS on both ends of a gRPC connection, and proxies on the way."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from trellis_kit.lifecycle import Fatal

_log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 2**31 - 1
"""Bytes of the largest message that a client takes, as stock peers do (Flower 1.20-1.42)."""

_CLIENT_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A peer that is gone without a word is noticed within a minute; stock servers refuse pings more often than this.
    ("grpc.keepalive_time_ms", 210_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True)
class ServerTls:
    """A server's certificate and key; with `client_ca` clients have to show a certificate of that CA."""

    certfile: Path
    keyfile: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class ClientTls:
    """The CA that a client trusts (None: the system's), and the certificate it shows if any."""

    root_certificates: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fatal(f"Cannot read the {what} {path}: {error.strerror}") from error


class _Reloading:
    """Serves the newest readable state of the files; a half-written pair keeps the one before."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        try:
            self._seen = self._stamp()
        except OSError as error:
            raise Fatal(f"Cannot read {error.filename}: {error.strerror}") from error
        self.configuration = self._load()

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        paths = [path for path in (self._tls.certfile, self._tls.keyfile, self._tls.client_ca) if path is not None]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in (path.stat() for path in paths))

    def _load(self) -> grpc.ServerCertificateConfiguration:
        key, chain = _read(self._tls.keyfile, "private key"), _read(self._tls.certfile, "certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._tls.certfile, self._tls.keyfile)
        except (ssl.SSLError, OSError) as error:
            raise Fatal(
                f"{self._tls.certfile} and {self._tls.keyfile} are no certificate and its key: {error}"
            ) from error
        roots = None if self._tls.client_ca is None else _read(self._tls.client_ca, "client CA")
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def fetch(self) -> grpc.ServerCertificateConfiguration:
        """The configuration of the files as they are now."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self.configuration = self._load()
                self._seen = stamp
                _log.info("The certificate %s was renewed", self._tls.certfile)
        except (Fatal, OSError) as error:
            _log.warning("The changed certificate cannot be used yet, the one before stays: %s", error)
        return self.configuration


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials for a server port. Files that change are picked up with the next connection. Raises Fatal."""
    reloading = _Reloading(tls)
    return grpc.dynamic_ssl_server_credentials(
        reloading.configuration, reloading.fetch, require_client_authentication=tls.client_ca is not None
    )


def server_tls(
    *, insecure: bool, certfile: Path | None, keyfile: Path | None, client_ca: Path | None, flags: str
) -> ServerTls | None:
    """What the operator decided about a server's TLS; None for --insecure. Raises Fatal, saying how to decide."""
    if insecure:
        if certfile or keyfile:
            raise Fatal("Give either --insecure or certificates, not both.")
        return None
    if certfile is None or keyfile is None:
        raise Fatal(
            f"Neither TLS nor --insecure is set. Give {flags}, or --insecure where everybody on the network is trusted."
        )
    return ServerTls(certfile, keyfile, client_ca)


def proxy_for(address: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The HTTP proxy between here and host:port by HTTPS_PROXY and NO_PROXY (either case), as gRPC uses it.

    NO_PROXY lists names (with everything below them), addresses, address ranges (10.0.0.0/8), or `*`.
    """
    environment = os.environ if environ is None else environ
    proxy = next((environment[name] for name in ("https_proxy", "HTTPS_PROXY") if environment.get(name)), None)
    if proxy is None:
        return None
    host = address.rsplit(":", 1)[0].strip("[]").lower()
    excluded = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return None if any(_excludes(entry.strip().lower(), host) for entry in excluded.split(",")) else proxy


def _excludes(entry: str, host: str) -> bool:
    if "/" in entry:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
        except ValueError:  # no range, or the host has a name
            return False
    name = entry.lstrip(".")
    return entry == "*" or (name != "" and (host == name or host.endswith("." + name)))


def open_channel(
    address: str,
    tls: ClientTls | None,
    *,
    use_proxy: bool = True,
    options: Sequence[tuple[str, object]] = (),
) -> grpc.aio.Channel:
    """A channel to host:port; `tls` None is a plain connection. Raises Fatal for certificates that cannot be read.

    With `use_proxy` the connection goes through HTTPS_PROXY unless NO_PROXY excludes the host.
    """
    proxy = proxy_for(address) if use_proxy else None
    proxying: tuple[tuple[str, object], ...] = (("grpc.enable_http_proxy", 0),)
    if proxy is not None:
        proxying = (("grpc.enable_http_proxy", 1), ("grpc.http_proxy", proxy))
    everything = [*_CLIENT_OPTIONS, *proxying, *options]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=everything)
    roots = None if tls.root_certificates is None else _read(tls.root_certificates, "root certificate")
    chain = None if tls.certfile is None else _read(tls.certfile, "certificate")
    key = None if tls.keyfile is None else _read(tls.keyfile, "private key")
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots, key, chain), options=everything)
