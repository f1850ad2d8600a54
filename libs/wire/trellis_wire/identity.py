"""Who a SuperNode is: EC keys, and the signed headers that every Fleet call carries (Flower 1.20-1.42).

The signed bytes are the timestamp's text and nothing else; ECDSA with SHA-256. gRPC carries PEM and signature as binary
metadata (up to 1.39), HTTP as base64 headers (from 1.40).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

PUBLIC_KEY: Final = "flwr-public-key"
TIMESTAMP: Final = "flwr-timestamp"
SIGNATURE: Final = "flwr-signature"

CLOCK_TOLERANCE: Final = timedelta(seconds=5)
"""How far a sender's clock may be ahead."""
MAX_AGE: Final = timedelta(seconds=305)
"""How old a signature may be: 300 s as in Flower 1.20-1.42, and the clock tolerance."""

_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}


class KeyProblem(ValueError):
    """A key cannot be read or is of the wrong kind; the text says which kind is wanted."""


class SignatureProblem(ValueError):
    """A call is not validly signed. The text is the one Flower's own servers answer with."""


@dataclass(frozen=True)
class NodeCredential:
    """A key that its holder just proved to have. `public_key` is SubjectPublicKeyInfo PEM, re-encoded. `proof` is the
    same for two calls with one signature, also where its second half was negated, which stays valid."""

    public_key: bytes
    timestamp: datetime
    proof: bytes = b""


def generate_key(curve: Literal["P-256", "P-384", "P-521"] = "P-256") -> ec.EllipticCurvePrivateKey:
    """A new private key."""
    return ec.generate_private_key(_CURVES[curve])


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """An EC private key in OpenSSH or PEM form, without a passphrase. KeyProblem."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise KeyProblem(f"Cannot read the private key {path}: {error.strerror}.") from error
    try:
        load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in text else load_pem_private_key
        key = load(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyProblem(
            f"{path} is no private key without passphrase; make one with: ssh-keygen -t ecdsa -b 256 -N '' -f FILE"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyProblem(f"{path} is no EC key; make one with: ssh-keygen -t ecdsa -b 256 -N '' -f FILE")
    return key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    """The public key as SubjectPublicKeyInfo PEM, trailing newline included: what goes over the wire."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=4096)
def parse_public_key(text: bytes) -> ec.EllipticCurvePublicKey:
    """An EC public key in PEM or OpenSSH form. KeyProblem. Cached: each node sends its key with every call."""
    try:
        key = load_ssh_public_key(text) if text.startswith(b"ecdsa-") else load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyProblem("This is no EC public key in PEM or OpenSSH form.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KeyProblem("This is no EC public key; Flower's nodes use ECDSA keys.")
    return key


def sign_headers_grpc(key: ec.EllipticCurvePrivateKey, now: datetime | None = None) -> list[tuple[str, str | bytes]]:
    """The metadata that signs one gRPC call."""
    timestamp, signature = _sign(key, now)
    return [(f"{PUBLIC_KEY}-bin", public_pem(key)), (TIMESTAMP, timestamp), (f"{SIGNATURE}-bin", signature)]


def sign_headers_http(key: ec.EllipticCurvePrivateKey, now: datetime | None = None) -> dict[str, str]:
    """The headers that sign one HTTP call (Flower 1.40 on)."""
    timestamp, signature = _sign(key, now)
    return {
        PUBLIC_KEY: base64.b64encode(public_pem(key)).decode(),
        TIMESTAMP: timestamp,
        SIGNATURE: base64.b64encode(signature).decode(),
    }


def _sign(key: ec.EllipticCurvePrivateKey, now: datetime | None) -> tuple[str, bytes]:
    timestamp = (now or datetime.now(UTC)).isoformat()
    return timestamp, key.sign(timestamp.encode(), ec.ECDSA(SHA256()))


def verify_grpc(metadata: Iterable[tuple[str, str | bytes]], now: datetime | None = None) -> NodeCredential:
    """The credential that a gRPC call's metadata proves. SignatureProblem."""
    found = {key: value for key, value in metadata if key.startswith("flwr-")}
    public, timestamp, signature = (found.get(name) for name in (f"{PUBLIC_KEY}-bin", TIMESTAMP, f"{SIGNATURE}-bin"))
    if not isinstance(public, bytes) or not isinstance(timestamp, str) or not isinstance(signature, bytes):
        raise SignatureProblem("Missing authentication metadata")
    return _verify(public, timestamp, signature, now)


def verify_http(headers: Mapping[str, str], now: datetime | None = None) -> NodeCredential:
    """The credential that an HTTP call's headers prove; names are looked up in lower case. SignatureProblem."""
    try:
        public, signature = (base64.b64decode(headers[name], validate=True) for name in (PUBLIC_KEY, SIGNATURE))
        timestamp = headers[TIMESTAMP]
    except KeyError as error:
        raise SignatureProblem("Missing authentication metadata") from error
    except (binascii.Error, ValueError) as error:
        raise SignatureProblem("Invalid signature") from error
    return _verify(public, timestamp, signature, now)


def _verify(public: bytes, timestamp: str, signature: bytes, now: datetime | None) -> NodeCredential:
    try:
        moment = datetime.fromisoformat(timestamp)
        age = (now or datetime.now(UTC)) - moment
    except (ValueError, TypeError) as error:  # no date, or one without its offset
        raise SignatureProblem("Invalid timestamp") from error
    if not -CLOCK_TOLERANCE < age < MAX_AGE:
        raise SignatureProblem("Invalid timestamp")
    try:
        key = parse_public_key(public)
        key.verify(signature, timestamp.encode(), ec.ECDSA(SHA256()))
    except (KeyProblem, InvalidSignature) as error:
        raise SignatureProblem("Invalid signature") from error
    first_half, _ = decode_dss_signature(signature)
    return NodeCredential(public_pem(key), moment, sha256(f"{timestamp} {first_half:x}".encode()).digest()[:16])
