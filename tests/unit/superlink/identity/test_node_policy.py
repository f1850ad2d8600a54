"""What the SuperLink's settings say of SuperNodes that nobody registered, and files with keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from trellis_kit.lifecycle import Fatal
from trellis_superlink.core.nodes import Unknown
from trellis_superlink.main import listed_keys, unknown_nodes
from trellis_superlink.settings import SuperLinkSettings
from trellis_wire.identity import generate_key, public_pem


@pytest.mark.parametrize(
    ("given", "unknown"),
    [
        ({}, Unknown.ADMIT),
        ({"enable_supernode_auth": True}, Unknown.REFUSE),
        ({"auth_list_public_keys": Path("keys.csv")}, Unknown.REFUSE),
        ({"enable_supernode_auth": True, "unknown_supernodes": "hold"}, Unknown.HOLD),
        ({"unknown_supernodes": "refuse"}, Unknown.REFUSE),
        ({"unknown_supernodes": "admit"}, Unknown.ADMIT),
    ],
)
def test_what_becomes_of_strangers(given: dict[str, Any], unknown: Unknown) -> None:
    assert unknown_nodes(SuperLinkSettings(**given)) is unknown


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(Fatal, match="leave one out"):
        unknown_nodes(SuperLinkSettings(enable_supernode_auth=True, unknown_supernodes="admit"))


def test_a_file_with_keys(tmp_path: Path) -> None:
    """With commas, as stock writes it, or line by line; comments and empty lines are nothing."""
    keys = [generate_key(curve) for curve in ("P-256", "P-384", "P-521")]
    one, two, three = (key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() for key in keys)
    path = tmp_path / "keys.csv"
    path.write_text(f"# sites\n{one},{two} site@berlin\n\n{three}\n")
    assert listed_keys(path) == [public_pem(key) for key in keys]


def test_a_file_with_something_else(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path = tmp_path / "keys.csv"
    for content in (key, b"nonsense", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(Fatal, match=r"keys\.csv"):
            listed_keys(path)
    with pytest.raises(Fatal, match="cannot be read"):
        listed_keys(tmp_path / "none")
