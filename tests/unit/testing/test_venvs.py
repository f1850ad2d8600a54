"""Environments of stock releases: each made once, whole, and the newest release though its pins cannot be had."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest
from trellis_testing.venvs import StockFlwr


def says(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_1_42_stands_on_the_dependencies_of_the_release_before() -> None:
    release = StockFlwr("1.42.0").ensure()
    assert says(str(release.python), "-c", "import flwr, numpy, sklearn; print(flwr.__version__)") == "1.42.0\n"
    assert "1.42.0" in says(release.program("flwr"), "--version")
    for program in ("flower-superlink", "flower-supernode"):  # they import what they are made of
        assert "--insecure" in says(release.program(program), "--help")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Environments are made below `tmp_path`, of one script each; where they were made."""
    made: list[Path] = []

    def make(_release: StockFlwr, target: Path) -> None:
        made.append(target)
        (target / "bin").mkdir(parents=True)
        (target / "bin" / "flwr").write_text(f"#!{target}/bin/python\n")
        if len(made) == 1 and (tmp_path / "fails").exists():
            raise RuntimeError("the line is down")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(StockFlwr, "_make", make)
    return made


def test_one_that_was_not_finished_is_made_anew(made: list[Path], tmp_path: Path) -> None:
    release = StockFlwr("1.24.0")
    (tmp_path / "fails").touch()
    with pytest.raises(RuntimeError, match="the line is down"):
        release.ensure()
    assert not release.path.exists()
    release.ensure()
    # Programs are started by their path, which is not where they were made.
    assert Path(release.program("flwr")).read_text() == f"#!{release.python}\n"
    assert len(made) == 2


def test_those_who_want_it_at_once_make_it_once(made: list[Path]) -> None:
    start = threading.Barrier(4)

    def want() -> None:
        start.wait()
        StockFlwr("1.24.0").ensure()

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
