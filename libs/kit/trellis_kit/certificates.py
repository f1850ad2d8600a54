"""What a certificate file says, for logs and for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

E = TypeVar("E", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Facts:
    """The first certificate of a PEM file."""

    subject: str  # common names
    issuer: str
    names: tuple[str, ...]  # DNS names and addresses that a server may be reached by
    not_before: datetime
    not_after: datetime
    for_servers: bool
    for_clients: bool
    is_ca: bool

    def expired(self, now: datetime | None = None) -> bool:
        return self.not_after < (now or datetime.now(UTC))


def read(path: Path) -> Facts:
    """Raises OSError and ValueError for what is no PEM certificate."""
    return facts(x509.load_pem_x509_certificate(path.read_bytes()))


def facts(certificate: x509.Certificate) -> Facts:
    """Of a parsed certificate."""
    usages = _extension(certificate, x509.ExtendedKeyUsage)
    constraints = _extension(certificate, x509.BasicConstraints)
    return Facts(
        subject=_common_name(certificate.subject),
        issuer=_common_name(certificate.issuer),
        names=names(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        for_servers=usages is None or ExtendedKeyUsageOID.SERVER_AUTH in usages,
        for_clients=usages is None or ExtendedKeyUsageOID.CLIENT_AUTH in usages,
        is_ca=constraints is not None and constraints.ca,
    )


def names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses of a certificate."""
    alternatives = _extension(certificate, x509.SubjectAlternativeName)
    if alternatives is None:
        return ()
    return (
        *alternatives.get_values_for_type(x509.DNSName),
        *map(str, alternatives.get_values_for_type(x509.IPAddress)),
    )


def describe_names(path: Path) -> str:
    """Those of a file, as a list for people."""
    try:
        return ", ".join(read(path).names) or "none"
    except (OSError, ValueError):
        return f"those of {path}"


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()
