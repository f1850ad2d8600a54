"""The table of releases: each session adds what it tried to build/compatibility.json, and one that tries all of them
writes docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matrix import ALL, PAGE, RESULTS, Matrix, releases, write


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    if releases() == ALL:
        RESULTS.unlink(missing_ok=True)
    found = Matrix(RESULTS)
    yield found
    if releases() == ALL:
        write(PAGE, found.kept())
