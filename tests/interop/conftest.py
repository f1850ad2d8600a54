"""The table of releases: each session adds what it tried to build/compatibility.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix import Matrix

RESULTS = Path(__file__).parents[2] / "build" / "compatibility.json"


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    found = Matrix()
    yield found
    found.save(RESULTS)
