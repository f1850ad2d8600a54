"""What process tests share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def digits() -> Path:
    """The app of the message API."""
    return ROOT / "examples" / "digits"


@pytest.fixture
def legacy() -> Path:
    """The app of the NumPyClient API."""
    return ROOT / "examples" / "legacy-numpy"


def accuracies(log: str) -> list[float]:
    """What the examples print for each round, round 0 first."""
    return [float(found) for found in re.findall(r"^round \d+/\d+: accuracy ([\d.]+)", log, re.MULTILINE)]
