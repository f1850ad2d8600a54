"""Signed calls: those that stock nodes really sent, ours, and every way in which one can be wrong."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from trellis_wire.identity import (
    KeyProblem,
    SignatureProblem,
    generate_key,
    load_private_key,
    parse_public_key,
    private_pem,
    public_pem,
    sign_headers_grpc,
    sign_headers_http,
    verify_grpc,
    verify_http,
)
from wire_vectors import signatures

NOW = datetime(2026, 11, 24, 12, 0, 0, 5, UTC)


def headers_of(entry: dict[str, Any]) -> list[tuple[str, str | bytes]]:
    return [(key, bytes.fromhex(value) if key.endswith("-bin") else value) for key, value in entry["headers"]]


@pytest.mark.parametrize("entry", signatures(), ids=lambda entry: f"{entry['release']} {entry['call']}")
def test_captured_calls_verify_within_their_window(entry: dict[str, Any]) -> None:
    headers = headers_of(entry)
    sent = datetime.fromisoformat(str(dict(headers)["flwr-timestamp"]))

    def verify(now: datetime) -> bytes:
        if entry["transport"] == "http":
            return verify_http({key: str(value) for key, value in headers}, now).public_key
        return verify_grpc(headers, now).public_key

    announced = dict(headers).get("flwr-public-key-bin") or base64.b64decode(str(dict(headers).get("flwr-public-key")))
    for seconds in (-4.9, 0, 304.9):
        assert verify(sent + timedelta(seconds=seconds)) == announced
    for seconds in (-5.1, 305.1, 86400):
        with pytest.raises(SignatureProblem, match=r"^Invalid timestamp$"):
            verify(sent + timedelta(seconds=seconds))


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_our_own_calls_verify(curve: Literal["P-256", "P-384", "P-521"]) -> None:
    key = generate_key(curve)
    for now in (NOW, NOW.replace(microsecond=0)):
        assert verify_grpc(sign_headers_grpc(key, now), now).public_key == public_pem(key)
        assert verify_http(sign_headers_http(key, now), now).timestamp == now
    assert dict(sign_headers_grpc(key, NOW))["flwr-timestamp"] == "2026-11-24T12:00:00.000005+00:00"


def test_missing_headers_are_named_as_stock_names_them() -> None:
    key = generate_key()
    grpc, http = sign_headers_grpc(key, NOW), sign_headers_http(key, NOW)
    for index in range(3):
        with pytest.raises(SignatureProblem, match=r"^Missing authentication metadata$"):
            verify_grpc(grpc[:index] + grpc[index + 1 :], NOW)
        with pytest.raises(SignatureProblem, match=r"^Missing authentication metadata$"):
            verify_http({name: value for i, (name, value) in enumerate(http.items()) if i != index}, NOW)


def test_altered_calls_are_refused() -> None:
    key, other = generate_key(), generate_key()
    good, foreign = dict(sign_headers_grpc(key, NOW)), dict(sign_headers_grpc(other, NOW))
    later = dict(sign_headers_grpc(key, NOW + timedelta(seconds=1)))
    for change in (
        {"flwr-signature-bin": foreign["flwr-signature-bin"]},
        {"flwr-signature-bin": b"no DER"},
        {"flwr-signature-bin": b""},
        {"flwr-public-key-bin": foreign["flwr-public-key-bin"]},
        {"flwr-public-key-bin": b"no key"},
        {"flwr-timestamp": later["flwr-timestamp"]},
    ):
        with pytest.raises(SignatureProblem, match=r"^Invalid signature$"):
            verify_grpc((good | change).items(), NOW)
    for timestamp in ("", "yesterday", "2026-11-24T12:00:00", "1795518144.8"):
        with pytest.raises(SignatureProblem, match=r"^Invalid timestamp$"):
            verify_grpc((good | {"flwr-timestamp": timestamp}).items(), NOW)
    with pytest.raises(SignatureProblem, match=r"^Invalid signature$"):
        verify_http(sign_headers_http(key, NOW) | {"flwr-signature": "not base64!"}, NOW)


def test_private_keys_load_from_pem_and_openssh(tmp_path: Path) -> None:
    key = generate_key("P-384")
    pem = tmp_path / "key.pem"
    pem.write_bytes(private_pem(key))
    assert public_pem(load_private_key(pem)) == public_pem(key)
    ssh = tmp_path / "key"
    ssh.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    assert public_pem(load_private_key(ssh)) == public_pem(key)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert public_pem(parse_public_key(line + b" someone@site\n")) == public_pem(key)
    assert public_pem(parse_public_key(public_pem(key))) == public_pem(key)


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    file = tmp_path / "key"
    with pytest.raises(KeyProblem, match="Cannot read"):
        load_private_key(file)
    for content, says in (
        (b"nothing", "no private key without passphrase"),
        (edwards.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "no EC key"),
    ):
        file.write_bytes(content)
        with pytest.raises(KeyProblem, match=says):
            load_private_key(file)
    with pytest.raises(KeyProblem, match="no EC public key"):
        parse_public_key(edwards.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
