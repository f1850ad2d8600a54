"""The table of releases: each session adds what it tried to build/compatibility.json, and one that tries all of them
writes docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix import ALL, Matrix, releases, write

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    if releases() == ALL:
        RESULTS.unlink(missing_ok=True)
    found = Matrix(RESULTS)
    yield found
    if releases() == ALL:
        write(PAGE, found.kept())
