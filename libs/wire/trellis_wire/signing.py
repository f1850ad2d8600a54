"""Signatures of FABs, as stock SuperNodes check them with --trusted-entities (Flower 1.24-1.42; WIRE.md 2.8).

An Ed25519 key signs 8 bytes with the time (big-endian seconds) and the FAB's SHA-256. Signatures travel beside the FAB
in its `verifications`: the key's name -> JSON with `signed_at` and `signature` (base64url).
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

LICENSE = "valid_license"
"""The one entry that names no key; SuperNodes of 1.28 and later take no FAB without it."""

MAX_SIGNATURES = 16
_MAX_ENTRY = 1000  # characters


class SigningProblem(ValueError):
    """A key or a signature cannot be used; `str(error)` says which and why."""


def read_private(path: Path) -> Ed25519PrivateKey:
    """From an OpenSSH or PEM file without a passphrase. SigningProblem."""
    try:
        content = path.read_bytes()
        load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in content else load_pem_private_key
        key = load(content, None)
    except OSError as error:
        raise SigningProblem(f"The signing key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningProblem(
            f"{path} holds no private key that can be used without a passphrase; make one: ssh-keygen -t ed25519 -N ''"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningProblem(f"{path} must hold an Ed25519 key: ssh-keygen -t ed25519")
    return key


def read_public(text: str) -> Ed25519PublicKey:
    """From the line of an OpenSSH public key. SigningProblem."""
    try:
        key = load_ssh_public_key(text.strip().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningProblem(f"{text[:40]!r}... is no OpenSSH public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningProblem(f"{text[:40]!r}... is no Ed25519 key")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """The name of a key: who trusts it writes this down beside it."""
    return f"fpk_{hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:32]}"


def sign(fab_hash: str, key: Ed25519PrivateKey, signed_at: int) -> dict[str, str]:
    """The entry for `verifications`; `signed_at` in Unix seconds."""
    signature = base64.urlsafe_b64encode(key.sign(_signed_bytes(fab_hash, signed_at))).decode().rstrip("=")
    return {key_id(key.public_key()): json.dumps({"signed_at": signed_at, "signature": signature})}


def signer(fab_hash: str, verifications: Mapping[str, str], trusted: Mapping[str, Ed25519PublicKey]) -> str | None:
    """The name of a trusted key that signed the FAB; None where none did."""
    for name, entry in verifications.items():
        if name in trusted and _good(fab_hash, entry, trusted[name]):
            return name
    return None


def check_entries(verifications: Mapping[str, str]) -> dict[str, str]:
    """The signatures among the entries, well formed: a stock SuperNode ends over one that is not. SigningProblem."""
    entries = {name: entry for name, entry in verifications.items() if name != LICENSE}
    if len(entries) > MAX_SIGNATURES or any(len(name) + len(entry) > _MAX_ENTRY for name, entry in entries.items()):
        raise SigningProblem(f"An app carries {MAX_SIGNATURES} signatures at most, each of {_MAX_ENTRY} characters.")
    for name, entry in entries.items():
        if _read(entry) is None:
            raise SigningProblem(
                f"The signature {name!r} is none: it needs signed_at (seconds) and signature (base64url)."
            )
    return entries


def _read(entry: str) -> tuple[int, bytes] | None:
    """Time and signature of an entry; None where it is none."""
    try:
        told = json.loads(entry)
        signed_at, encoded = told["signed_at"], told["signature"]
        if type(signed_at) is not int or not 0 <= signed_at < 1 << 64:
            return None
        return signed_at, base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _good(fab_hash: str, entry: str, key: Ed25519PublicKey) -> bool:
    if (told := _read(entry)) is None:
        return False
    signed_at, signature = told
    try:
        key.verify(signature, _signed_bytes(fab_hash, signed_at))
    except InvalidSignature:
        return False
    return True


def _signed_bytes(fab_hash: str, signed_at: int) -> bytes:
    return struct.pack(">Q", signed_at) + bytes.fromhex(fab_hash)
