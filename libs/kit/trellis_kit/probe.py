"""Why a connection does not come about: one more handshake, by Python's own TLS, which can say it.

gRPC says "Socket closed" where a server wants a certificate, and tells a server nothing when it does not trust it. The
handshake here says both: a sentence for our log, and a TLS alert for the server's. It is TLS 1.2, in which an alert
goes out readably (OpenSSL 3 sends it unprotected in 1.3, which BoringSSL servers take for a broken record).
"""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from cryptography import x509

from trellis_kit import certificates
from trellis_kit.lifecycle import Fatal
from trellis_kit.settings import split_address
from trellis_kit.tls import ClientTls, client_context

TIMEOUT = 3.0
"""Seconds for each step of a probe."""

# OpenSSL's codes of what is wrong with a certificate.
_NAME_MISMATCH = frozenset({62, 64})
_EXPIRED = 10
_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21})


class _Away(Exception):
    """Nobody is there, or the proxy does not lead there."""


@dataclass(frozen=True)
class Target:
    """Where to, and how it was tried."""

    address: str
    tls: ClientTls | None
    proxy: str | None = None

    @property
    def host(self) -> str:
        return split_address(self.address)[0]


def why(target: Target) -> str | None:
    """What stands against a TLS connection there, or None where it is something else. Blocks for some seconds."""
    try:
        return _plain(target) if target.tls is None else _secured(target, target.tls)
    except Fatal as problem:  # our own files
        return str(problem)
    except (_Away, OSError):  # gRPC says so, too
        return None


def _plain(target: Target) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        _handshake(target, context)
    except ssl.SSLError as error:
        if not isinstance(error, ssl.SSLEOFError) and "ALERT" in (error.reason or ""):
            return _wants_tls(target)
        return None
    return _wants_tls(target)


def _wants_tls(target: Target) -> str:
    return f"{target.address} wants TLS: give --root-certificates in place of --insecure"


def _secured(target: Target, tls: ClientTls) -> str | None:
    readable = client_context(tls)
    readable.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        _handshake(target, readable)
    except ssl.SSLCertVerificationError as error:
        return _mistrust(target, tls, error)
    except (ssl.SSLEOFError, ConnectionError):
        return _closed(target, tls)
    except ssl.SSLError as error:
        if "WRONG_VERSION_NUMBER" in (error.reason or "") or "RECORD_LAYER" in (error.reason or ""):
            return f"{target.address} answers without TLS"
        if "PROTOCOL_VERSION" in (error.reason or ""):
            return _closed(target, tls)  # it speaks 1.3 only
        return f"the TLS handshake with {target.address} fails: {error.reason}"
    return None


def _mistrust(target: Target, tls: ClientTls, error: ssl.SSLCertVerificationError) -> str:
    its = f"the certificate of {target.address}"
    if error.verify_code in _UNKNOWN_CA:
        trusted = "the system's roots" if tls.root_certificates is None else str(tls.root_certificates)
        return f"{its} is of a CA that is not in {trusted}"
    if error.verify_code == _EXPIRED:
        return f"{its} has expired"
    if error.verify_code in _NAME_MISMATCH:
        return f"{its} is not for {target.host} but for {_its_names(target) or 'other names'}"
    return f"{its} is not accepted: {error.verify_message}"


def _its_names(target: Target) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(_Away, OSError, ValueError), _connected(target, context) as connection:
        der = connection.getpeercert(binary_form=True)
        if der is not None:
            return ", ".join(certificates.names(x509.load_der_x509_certificate(der)))
    return ""


def _closed(target: Target, tls: ClientTls) -> str | None:
    """It ended the handshake. In TLS 1.3 ours is over before it looks at our certificate, so that tells them apart."""
    try:
        with _connected(target, client_context(tls)) as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.settimeout(TIMEOUT)
            if connection.recv(1):
                return None
    except ssl.SSLCertVerificationError as error:
        return _mistrust(target, tls, error)
    except (ssl.SSLError, ConnectionError):
        return f"{target.address} ends the TLS handshake; is it a TLS port?"
    except TimeoutError:
        return None
    return _unwelcome(target, tls)


def _unwelcome(target: Target, tls: ClientTls) -> str:
    if tls.certfile is None:
        return f"{target.address} wants a client certificate: give --certfile and --keyfile"
    try:
        own = certificates.read(tls.certfile)
    except (OSError, ValueError) as error:
        return f"the client certificate {tls.certfile} cannot be read: {error}"
    if own.expired():
        return f"the client certificate {tls.certfile} has expired on {own.not_after:%Y-%m-%d %H:%M} UTC"
    if not own.for_clients:
        return f"the certificate {tls.certfile} is not made for clients (extended key usage clientAuth)"
    return (
        f"{target.address} does not accept the client certificate {tls.certfile}, which {own.issuer!r} issued: "
        "is that the CA that it trusts for clients?"
    )


def speaks_http(target: Target) -> bool | None:
    """Whether an HTTP server that is well answers there: Flower's SuperLinks from 1.40 on (for command lines from 1.37
    on), and ours on its port for them. False for a gRPC server, None where nobody is to be reached. Blocks for some
    seconds."""
    try:
        if target.tls is None:
            connection: socket.socket = _reached(target)
        else:
            # A gRPC server takes the first; it would complain of a client that does not offer it.
            connection = secured = _connected(target, client_context(target.tls), "h2", "http/1.1")
            if secured.selected_alpn_protocol() == "h2":
                secured.close()
                return False
    except (_Away, OSError):
        return None
    with connection, contextlib.suppress(OSError):
        connection.settimeout(TIMEOUT)
        request = f"GET /health HTTP/1.1\r\nHost: {target.address}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = b""
        while len(answer) < 12 and (more := connection.recv(12 - len(answer))):
            answer += more
        return answer.startswith(b"HTTP/1.") and answer.endswith(b" 200")
    return False


# ---- connections -----------------------------------------------------------------------------------------------


def _handshake(target: Target, context: ssl.SSLContext) -> None:
    with _connected(target, context):
        pass


def _connected(target: Target, context: ssl.SSLContext, *protocols: str) -> ssl.SSLSocket:
    context.set_alpn_protocols(protocols or ["h2"])
    try:
        plain = _reached(target)
    except OSError as error:
        raise _Away from error
    try:
        return context.wrap_socket(plain, server_hostname=target.host)
    except BaseException:
        plain.close()
        raise


def _reached(target: Target) -> socket.socket:
    host, port = split_address(target.address)
    if target.proxy is None:
        return socket.create_connection((host, port), TIMEOUT)
    proxy = urlsplit(target.proxy)
    connection = socket.create_connection((proxy.hostname or "", proxy.port or 80), TIMEOUT)
    try:
        request = f"CONNECT {target.address} HTTP/1.1\r\nHost: {target.address}\r\n"
        if proxy.username is not None:
            known = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            request += f"Proxy-Authorization: Basic {base64.b64encode(known.encode()).decode()}\r\n"
        connection.sendall(f"{request}\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            if not (byte := connection.recv(1)) or len(answer) > 8192:
                raise ConnectionError("The proxy does not let us through.")
            answer += byte
        if answer.split(b" ", 2)[1:2] != [b"200"]:
            raise ConnectionError("The proxy does not let us through.")
    except BaseException:
        connection.close()
        raise
    return connection
