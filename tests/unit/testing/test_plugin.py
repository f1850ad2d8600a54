"""The fixtures for app developers, in pytest sessions of their own: what docs/testing.md shows, and what fails."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from trellis_testing.venvs import StockFlwr

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "testing.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def guest() -> Path:
    """Made before pytester changes the home, below which such environments are kept."""
    return StockFlwr("1.41.0").ensure().python


@pytest.fixture
def project(guest: Path, pytester: pytest.Pytester) -> pytest.Pytester:
    """An app's repository; the app learns handwritten digits."""
    shutil.copytree(ROOT / "examples" / "digits", pytester.path, dirs_exist_ok=True)
    return pytester


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that know this folder."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended meanwhile
        if str(folder) in words and "trellis-" in words:
            found.append(words)
    return found


@pytest.mark.timeout(600)  # three federations, one after the other
def test_what_the_page_shows(project: pytest.Pytester, guest: Path) -> None:
    example, sharing, _ = blocks("python")  # the last: tests/containers
    name = example.splitlines()[0].removeprefix("# ")
    module = project.path / name
    module.parent.mkdir(parents=True)
    module.write_text(example)
    (module.parent / "conftest.py").write_text(sharing)
    (module.parent / "test_sharing.py").write_text(
        "def test_one(sites):\n    assert len(sites.federation.roles) == 8\n"
        "def test_two(sites):\n    assert sites['superlink'].running\n"
    )
    workflow, _ = blocks("yaml")
    (command,) = re.findall(r"run: network/\.venv/bin/pytest (.*)", workflow)
    words = command.replace("guest/bin/python", str(guest)).split()
    temporary = project.path / "temporary"
    result = project.runpytest_subprocess("--basetemp", str(temporary), *words)
    result.assert_outcomes(passed=4)
    assert processes_of(temporary) == []


def test_the_workflow_uses_targets_that_exist() -> None:
    targets = [name for names in re.findall(r"make -C network (.+)", "".join(blocks("yaml"))) for name in names.split()]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_a_failing_test_shows_every_roles_log(project: pytest.Pytester, guest: Path) -> None:
    project.makepyfile(
        """
        def test_fails(federation):
            sites = federation(["trellis"], supernode_flags=("--log-level", "DEBUG"))
            result = sites.run(".", {"num-server-rounds": 1, "min-sites": 2}, timeout=2)
        """
    )
    result = project.runpytest_subprocess("--guest-python", str(guest))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*TimeoutError: Run * had not ended after 2 s: it was *"])
    result.stdout.fnmatch_lines([f"----- {role} -----" for role in ("superlink", "serverapp", "supernode-1")])
    result.stdout.fnmatch_lines(['*"level": "DEBUG", "service": "supernode"*'])


def test_what_an_app_gets_wrong_is_its_result(project: pytest.Pytester, guest: Path) -> None:
    server = project.path / "digits" / "server_app.py"
    server.write_text("import nowhere_to_be_found\n" + server.read_text())
    project.makepyfile(
        """
        def test_fails(federation):
            result = federation(1).run(".")
            assert result.outcome == "failed"
            assert "nowhere_to_be_found" in result.reason
            assert "Traceback" in result.log
        """
    )
    project.runpytest_subprocess("--guest-python", str(guest)).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--federation", "nothing"), "*--federation: invalid choice: 'nothing'*process*"),
        (("--guest-python", "/no/python"), "*--guest-python: there is no /no/python*"),
    ],
)
def test_wrong_options_are_told(pytester: pytest.Pytester, options: tuple[str, ...], told: str) -> None:
    pytester.makepyfile("def test_it(federation):\n    federation()\n")
    result = pytester.runpytest_subprocess(*options)
    assert result.ret != 0
    (result.stderr if "nothing" in options else result.stdout).fnmatch_lines([told])


def test_what_was_started_ends_where_the_session_is_killed(project: pytest.Pytester, guest: Path) -> None:
    project.makepyfile(
        """
        import os, signal

        def test_it(federation):
            sites = federation(1)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    temporary = project.path / "temporary"
    result = project.runpytest_subprocess("--basetemp", str(temporary), "--guest-python", str(guest))
    assert result.ret == -9
    end = time.monotonic() + 30
    while left := processes_of(temporary):
        assert time.monotonic() < end, left
        time.sleep(0.05)
