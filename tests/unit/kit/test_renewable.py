"""Secrets that are renewed while services run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trellis_kit.renewable import Renewable


def replaced(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, file)


def test_a_file_is_read_anew_once_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "join-token"
    file.write_text("old\n")
    secret = Renewable("old", file)
    assert (secret.shown(), secret.all()) == ("old", ("old",))
    replaced(file, b"new\n\n old \n")
    assert (secret.shown(), secret.all()) == ("new", ("new", "old"))
    assert [secret.takes(one) for one in ("new", "old", "", "ne", "new\nold", "\u00e4")] == [True, True, *[False] * 4]
    replaced(file, b"new\n")
    assert secret.all() == ("new",)


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff"])
def test_what_cannot_be_used_keeps_the_one_before(content: bytes, tmp_path: Path) -> None:
    """An empty one most of all: it would be shown by whoever shows none."""
    file = tmp_path / "join-token"
    file.write_text("old")
    secret = Renewable("old", file)
    replaced(file, content)
    assert secret.all() == ("old",)
    file.unlink()
    assert secret.all() == ("old",)
    file.write_text("newer")
    assert secret.all() == ("newer",)


def test_without_a_file_it_stays() -> None:
    assert Renewable("here").all() == ("here",)
