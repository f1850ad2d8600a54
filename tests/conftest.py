"""What process tests share."""

from __future__ import annotations

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
