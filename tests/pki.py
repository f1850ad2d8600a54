"""Certificates as a test wants them, also such as nobody should have."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from trellis_kit.tls import ClientTls, ServerTls

HERE = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certfile: Path
    keyfile: Path


class Authority:
    """A CA; `certfile` is for those who trust it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.certfile = folder / f"{name}.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        built = (
            _begun(name, name, self._key, days=10)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certfile.write_bytes(built.public_bytes(Encoding.PEM))

    def server(self, name: str = "server", names: tuple[str, ...] = HERE, days: float = 5) -> Pair:
        """Good for `days`; negative ones are over."""
        return self._leaf(name, names, ExtendedKeyUsageOID.SERVER_AUTH, days)

    def client(self, name: str = "client", days: float = 5) -> Pair:
        return self._leaf(name, (), ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def _leaf(self, name: str, names: tuple[str, ...], usage: x509.ObjectIdentifier, days: float) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        building = _begun(name, self.name, key, days).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            building = building.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), False)
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        pair.keyfile.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pair.certfile.write_bytes(building.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return pair


def _begun(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, days: float) -> x509.CertificateBuilder:
    end = datetime.now(UTC) + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(end, datetime.now(UTC)) - timedelta(days=1))
        .not_valid_after(end)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def serve(pair: Pair, client_ca: Authority | None = None) -> ServerTls:
    """What a server is that has this pair."""
    return ServerTls(pair.certfile, pair.keyfile, None if client_ca is None else client_ca.certfile)


def trust(authority: Authority, pair: Pair | None = None) -> ClientTls:
    """What a client is that trusts this CA."""
    if pair is None:
        return ClientTls(authority.certfile)
    return ClientTls(authority.certfile, pair.certfile, pair.keyfile)
