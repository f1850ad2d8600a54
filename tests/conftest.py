"""What process tests share."""

from __future__ import annotations

import signal
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


def pytest_configure() -> None:
    """What tests start can be interrupted, also where the tests were begun in the background: shells start those with
    the signal ignored, and that is inherited."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
