"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from control_server import FakeControl, Served, serve
from trellis_testing.venvs import StockFlwr


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and an empty current folder: nothing of this machine's configuration counts."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("FLWR_HOME", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return home


@pytest.fixture
def superlink() -> Iterator[Served]:
    yield from serve(FakeControl())


@pytest.fixture
def digits_app() -> str:
    return str(Path(__file__).parents[3] / "examples" / "digits")


@pytest.fixture(scope="session")
def guest() -> Path:
    """An interpreter with flwr in it. Made before `home` changes where such environments are kept."""
    return StockFlwr("1.41.0").ensure().python
