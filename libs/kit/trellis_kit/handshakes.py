"""TLS handshakes with our gRPC ports that fail: who it was, and why, as a line in the log.

gRPC tells Python nothing of a connection that ends in its handshake. Its core does know cause and addresses, and writes
them to standard error when its tracer `handshaker` is on (grpcio 1.80-1.85): those lines are read here. A client built
on gRPC ends a handshake without a word when it does not trust the server; ours say it with a TLS alert afterwards (see
`probe.py`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from trellis_kit import stderr

_log = logging.getLogger(__name__)

QUIET_SECONDS = 60.0
"""A peer that fails for the same reason again and again is told of once in this time."""
_REMEMBERED = 1000

_LINE = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w./-]+):\d+\] (.*)")
_BEGIN = "CallNextHandshakerLocked: error="
_REST = " shutdown="
_LOCAL = re.compile(r"grpc\.internal\.endpoint_local_address=([^,}]+)")
_PEER = re.compile(r"grpc\.internal\.endpoint_peer_address=([^,}]+)")


@dataclass(frozen=True)
class Failure:
    """A handshake that failed: both addresses (host:port), and what gRPC said."""

    local: str
    peer: str
    error: str


class Reader:
    """Takes lines of gRPC's log and finds the failures in it."""

    def __init__(self, report: Callable[[Failure], None]) -> None:
        self._report = report
        self._inside = False
        self._error: str | None = None

    def take(self, line: str) -> bool:
        """Whether the line is gRPC's. What it says before the process aborts (level F) is for people to see."""
        if (found := _LINE.fullmatch(line)) is not None:
            level, file, text = found.groups()
            self._inside = level != "F"
            self._error = None
            if file.endswith("handshaker.cc") and text.startswith(_BEGIN) and not text.startswith(_BEGIN + "OK"):
                self._error, _, rest = text.removeprefix(_BEGIN).partition(_REST)
                self._finish(rest)
            return self._inside
        if line.startswith("WARNING: All log messages before absl::InitializeLog()"):
            return True
        if self._inside and line.startswith((_REST, "=== Source Location Trace", "src/core/")):
            self._finish(line)
            return True
        blank = self._inside and not line.strip()
        self._inside = blank
        return blank

    def _finish(self, text: str) -> None:
        local, peer = _LOCAL.search(text), _PEER.search(text)
        if self._error is not None and local is not None and peer is not None:
            self._report(Failure(_address(local[1]), _address(peer[1]), self._error))
            self._error = None


def _address(uri: str) -> str:
    return unquote(uri).partition(":")[2]


# ---- what it means ---------------------------------------------------------------------------------------------

_CLIENT_CERTIFICATE = {
    "unable to get local issuer certificate": "its certificate is of a CA that this port does not trust",
    "self signed certificate": "its certificate is of a CA that this port does not trust",
    "self-signed certificate": "its certificate is of a CA that this port does not trust",
    "certificate has expired": "its certificate has expired",
    "certificate is not yet valid": "its certificate is not valid yet (are both clocks right?)",
    "unsupported certificate purpose": "its certificate is not made for clients (extended key usage clientAuth)",
}


def meaning(error: str, names: str) -> tuple[int, str]:
    """A log level, and what gRPC's words for a failed handshake mean. `names` are those of the server's certificate."""
    if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in error:
        return logging.WARNING, "it shows no client certificate, and this port wants one (--certfile and --keyfile)"
    if "CERTIFICATE_VERIFY_FAILED" in error:
        for known, sentence in _CLIENT_CERTIFICATE.items():
            if known in error:
                return logging.WARNING, sentence
        return logging.WARNING, f"its certificate is not accepted: {_short(error)}"
    if "ALERT_UNKNOWN_CA" in error:
        return logging.WARNING, "it does not trust the CA of this port's certificate (its root certificates)"
    if "ALERT_CERTIFICATE_EXPIRED" in error:
        return logging.WARNING, "to it, this port's certificate has expired"
    if "ALERT_UNSUPPORTED_CERTIFICATE" in error:
        return logging.WARNING, "this port's certificate is not made for servers (extended key usage serverAuth)"
    if "ALERT_BAD_CERTIFICATE" in error:
        return (
            logging.WARNING,
            f"it refuses this port's certificate, mostly because it came by a name that is not in it: {names}",
        )
    if any(word in error for word in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")):
        return logging.WARNING, "it does not speak TLS, which this port wants (--insecure over there?)"
    if "handshake failed" not in error.lower() and "ALERT" not in error:  # closed, reset, timed out
        return (
            logging.INFO,
            "it went away during the handshake without a word, as clients do that are built on gRPC and do not trust "
            f"the certificate, and as port checks do ({_short(error)})",
        )
    return logging.WARNING, _short(error)


def _short(error: str) -> str:
    """The part that says it: gRPC puts statuses around it that say OK."""
    said = error.rpartition("OPENSSL_internal:")[2]
    return said.removesuffix(": OK").removesuffix(": Invalid certificate verification context")[:200]


# ---- a process that listens in ---------------------------------------------------------------------------------

_ports: dict[int, tuple[str, Callable[[], str]]] = {}
_told: dict[tuple[str, str, str], float] = {}


def listen_in() -> None:
    """Log failed handshakes from now on. For programs that imported `traced` first; call before `logs.setup`."""
    from trellis_kit import traced  # acts when it is imported, and here it has been

    if not traced.raw:
        stderr.divert(Reader(tell).take)


def watch(port: int, name: str, names: Callable[[], str] = str) -> None:
    """Tell of handshakes that fail on this port. `names` gives those of its certificate."""
    _ports[port] = (name, names)


def tell(failure: Failure) -> None:
    """Log it, unless it is not about a port of ours or was told a moment ago."""
    port = int(failure.local.rpartition(":")[2])
    if port not in _ports:
        return  # we were the client; whoever made the call says what came of it
    name, names = _ports[port]
    tell_of(name, names(), failure.error, failure.peer)


def tell_of(name: str, names: str, error: str, peer: str | None = None) -> None:
    """Log that a handshake with this listener failed, unless that was told a moment ago."""
    level, sentence = meaning(error, names)
    key = (name, "" if peer is None else peer.rpartition(":")[0], sentence)
    now = time.monotonic()
    if now - _told.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
        return
    if len(_told) >= _REMEMBERED:
        _told.clear()
    _told[key] = now
    _log.log(
        level,
        "A connection to %s came to nothing: %s",
        name,
        sentence,
        extra={"listener": name, "peer": peer, "cause": _short(error)},
    )
