"""TLS on both ends of a gRPC connection, and proxies on the way."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import grpc

from trellis_kit import certificates, handshakes
from trellis_kit.lifecycle import Fatal

_log = logging.getLogger(__name__)

T = TypeVar("T")

SOON_DAYS: Final = 14
"""A certificate that expires within so many days is warned of, once an hour at most."""
_REMIND_SECONDS: Final = 3600.0


@dataclass(frozen=True)
class ServerTls:
    """A server's certificate and key; with `client_ca` clients have to show a certificate of that CA."""

    certfile: Path
    keyfile: Path
    client_ca: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return _given(self.certfile, self.keyfile, self.client_ca)


@dataclass(frozen=True)
class ClientTls:
    """The CA that a client trusts (None: the system's), and the certificate it shows if any."""

    root_certificates: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return _given(self.root_certificates, self.certfile, self.keyfile)


def _given(*paths: Path | None) -> tuple[Path, ...]:
    return tuple(path for path in paths if path is not None)


def stamp(paths: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Differs once one of the files was written or replaced. OSError."""
    return tuple((found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in paths))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fatal(f"Cannot read the {what} {path}: {error.strerror}") from error


class _Reloading(Generic[T]):
    """What `load` makes of the newest readable state of the files; a half-written pair keeps the one before."""

    def __init__(self, tls: ServerTls, load: Callable[[ServerTls], T]) -> None:
        self._tls = tls
        self._load = load
        try:
            self._seen = stamp(tls.files)
        except OSError as error:
            raise Fatal(f"Cannot read {error.filename}: {error.strerror}") from error
        self.current = load(tls)
        self._unusable: object = None  # the state of the files that was complained of
        self._reminded = -_REMIND_SECONDS
        self._remind()

    def fetch(self) -> T:
        """The newest. Called for each connection."""
        try:
            seen = stamp(self._tls.files)
        except OSError as error:
            self._complain(None, error)
            return self.current
        if seen != self._seen:
            try:
                self.current = self._load(self._tls)
            except Fatal as problem:
                self._complain(seen, problem)
            else:
                self._seen = seen
                self._reminded = -_REMIND_SECONDS
                _log.info("The certificate %s was renewed", self._tls.certfile)
        self._remind()
        return self.current

    def _complain(self, seen: object, problem: Exception) -> None:
        if (seen, str(problem)) != self._unusable:
            _log.warning("The changed certificate cannot be used yet, the one before stays: %s", problem)
        self._unusable = (seen, str(problem))

    def _remind(self) -> None:
        """Only here a server learns of its expiry: clients turn away without a word."""
        if time.monotonic() - self._reminded < _REMIND_SECONDS:
            return
        self._reminded = time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            until = certificates.read(self._tls.certfile).not_after
            left = until - datetime.now(UTC)
            if left < timedelta(0):
                _log.error("The certificate %s has expired on %s: clients refuse it", self._tls.certfile, until)
            elif left < timedelta(days=SOON_DAYS):
                _log.warning("The certificate %s expires on %s; renew it", self._tls.certfile, until)


def _context(tls: ServerTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_pair(context, tls.certfile, tls.keyfile)
    if tls.client_ca is not None:
        _trust(context, tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_pair(context: ssl.SSLContext, certfile: Path, keyfile: Path | None) -> None:
    def refuse() -> str:
        raise Fatal(f"The private key {keyfile} is encrypted; services need one that is not.")

    try:
        context.load_cert_chain(certfile, keyfile, password=refuse)
    except (ssl.SSLError, OSError) as error:
        raise Fatal(f"{certfile} and {keyfile} are no certificate and its key: {error}") from error


def _trust(context: ssl.SSLContext, roots: Path) -> None:
    try:
        context.load_verify_locations(roots)
    except (ssl.SSLError, OSError) as error:
        raise Fatal(f"{roots} holds no CA certificate that can be read: {error}") from error


def _configuration(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    key, chain = _read(tls.keyfile, "private key"), _read(tls.certfile, "certificate")
    _context(tls)  # says what is wrong with them, which gRPC does not
    roots = None if tls.client_ca is None else _read(tls.client_ca, "client CA")
    return grpc.ssl_server_certificate_configuration([(key, chain)], roots)


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials for a gRPC port. Files that change are picked up with the next connection. Raises Fatal."""
    reloading = _Reloading(tls, _configuration)

    def changed() -> Any:  # None where nothing is new, which the stubs do not know
        before = reloading.current
        newest = reloading.fetch()
        return None if newest is before else newest

    return grpc.dynamic_ssl_server_credentials(
        reloading.current, changed, require_client_authentication=tls.client_ca is not None
    )


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """The same for an HTTP port, whose failed handshakes are told of here. Raises Fatal."""
    reloading = _Reloading(tls, _context)

    class Told(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:  # asyncio drops it
                handshakes.tell_of("http", certificates.describe_names(tls.certfile), error.reason or str(error))
                raise

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = reloading.fetch()

    reloading.current.sslobject_class = Told
    reloading.current.sni_callback = renew  # called at each handshake, whether the client names a server or not
    return reloading.current


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """What a client is to Python's own TLS. Raises Fatal for files that are not what they should be."""
    if (tls.certfile is None) != (tls.keyfile is None):
        raise Fatal("A client certificate and its key belong together (--certfile and --keyfile).")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.root_certificates is None:
        context.load_default_certs()
    else:
        _trust(context, tls.root_certificates)
    if tls.certfile is not None:
        _load_pair(context, tls.certfile, tls.keyfile)
    return context


def client_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """What a client is to gRPC. Raises Fatal as `client_context` does."""
    client_context(tls)  # says what is wrong, which gRPC does not
    roots = None if tls.root_certificates is None else _read(tls.root_certificates, "root certificate")
    chain = None if tls.certfile is None else _read(tls.certfile, "certificate")
    key = None if tls.keyfile is None else _read(tls.keyfile, "private key")
    return grpc.ssl_channel_credentials(roots, key, chain)


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


def interior_tls(
    *, insecure: bool, certfile: Path | None, keyfile: Path | None, client_ca: Path | None, token: bool, flags: str
) -> ServerTls | None:
    """What the operator decided about the port where executors come in; None for a plain one.

    `token` says whether executors have to show a secret, `flags` name the certificate and its key. Raises Fatal for
    what lets everybody in or says two things, and tells how to decide.
    """
    if (certfile is None) != (keyfile is None):
        raise Fatal(f"{flags} belong together.")
    if certfile is None or keyfile is None:
        if client_ca is not None:
            raise Fatal(f"--executor-ca-certfile needs {flags}.")
        if not insecure:
            raise Fatal(
                f"Neither TLS nor --appio-insecure is set for the port of executors. Give {flags} (`trellis certs "
                "init` makes them), or --appio-insecure where everybody on the network is trusted."
            )
        return None
    if client_ca is None and not token:
        raise Fatal(
            "Whoever reaches the port of executors could act as one: give --executor-ca-certfile (`trellis certs init` "
            "makes it) or --join-token-file, by which executors show who they are."
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
