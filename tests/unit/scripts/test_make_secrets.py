"""make-secrets: what it makes, for whom, and what it leaves alone."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "make-secrets"


def made(folder: Path) -> dict[str, str]:
    subprocess.run(["bash", str(SCRIPT), str(folder)], check=True, capture_output=True, timeout=60)
    return {path.name: path.read_text().strip() for path in folder.iterdir()}


def test_secrets_are_long_differ_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    first = made(folder)
    assert set(first) >= {"keycloak-root-password", "pipeline-secret"}
    assert len(set(first.values())) == len(first)
    assert all(len(secret) == 32 for secret in first.values())
    # Users of other numbers read the files in containers; on this machine nobody else gets as far as to them.
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "admin-password").write_text("chosen\n")
    (folder / "viewer-password").write_text("")
    again = made(folder)
    assert again["admin-password"] == "chosen"
    assert again["pipeline-secret"] == first["pipeline-secret"]
    assert again["viewer-password"] not in ("", first["viewer-password"])
    assert set(made(tmp_path / "other").values()).isdisjoint(again.values())
