"""FederationContainer as app developers use it: what docs/testing.md shows, logs of what fails, nothing left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import docker
import pytest
from compose_world import ROOT, behind_a_proxy, image
from testcontainers.core.labels import LABEL_SESSION_ID

pytestmark = [pytest.mark.usefixtures("images"), pytest.mark.timeout(900)]

DIGITS = ROOT / "examples" / "digits"


def python(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, so a test session of its own; Docker has a proxy for containers there."""
    environment = {**os.environ, **behind_a_proxy(cwd)}
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def left_by(session: str) -> list[str]:
    engine = docker.from_env()
    label = {"label": f"{LABEL_SESSION_ID}={session}"}
    found = [*engine.containers.list(all=True, filters=label), *engine.networks.list(filters=label)]
    return [thing.name for thing in [*found, *engine.volumes.list(filters=label)]]


def test_what_the_page_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    *_, example = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for role in ("clientapp", "serverapp"):
        assert f'"my/{role}"' in example
        example = example.replace(f'"my/{role}"', f'"{image(f"{role}-digits")}"')
    example = example.replace("Path(__file__).parents[2]", f"Path({str(DIGITS)!r})")
    (tmp_path / "test_outage.py").write_text(example)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    done = python("-m", "pytest", "-q", "test_outage.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_by_the_fixture_a_failing_test_shows_the_log_of_every_container(tmp_path: Path) -> None:
    (tmp_path / "test_fails.py").write_text(
        """
from testcontainers.core.labels import SESSION_ID

def test_it(federation):
    print("session", SESSION_ID)
    federation(1, tls=True)
    raise AssertionError("on purpose")
"""
    )
    images = [f"--{role}-image={image(f'{role}-digits')}" for role in ("clientapp", "serverapp")]
    done = python("-m", "pytest", "--federation=container", *images, "test_fails.py", cwd=tmp_path)
    assert "1 failed" in done.stdout
    assert "on purpose" in done.stdout
    for role in ("superlink", "serverapp", "supernode", "clientapp"):
        assert re.search(rf"^----- {role}(-1)? -----\n\{{.*\"service\": \"{role}\"", done.stdout, re.MULTILINE), role
    (session,) = re.findall(r"^session (\S+)$", done.stdout, re.MULTILINE)
    assert left_by(session) == []


def test_images_of_ours_that_were_not_built_are_not_looked_for_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "test_fails.py").write_text(
        "def test_it(federation):\n    federation(1, superlink_image='trellis/of-somebody-else')\n"
    )
    done = python("-m", "pytest", "--federation=container", "test_fails.py", cwd=tmp_path)
    assert "There is no image trellis/of-somebody-else here" in done.stdout
    assert "pull access denied" not in done.stdout


KILLED = """
import asyncio, os, signal
from testcontainers.core.labels import SESSION_ID
from trellis_testing import FederationContainer

async def main():
    federation = FederationContainer(1)
    await asyncio.to_thread(federation.prepare)
    federation["superlink"].start()
    federation["superlink"].pause()
    print(SESSION_ID, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_what_a_killed_session_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = python("-c", KILLED, cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    session = killed.stdout.strip()
    assert len(left_by(session)) == 1 + 4 + 2  # a container, networks, volumes
    following = python("-c", "from trellis_testing.engine import engine; engine()", cwd=tmp_path)
    assert following.returncode == 0, following.stderr
    assert left_by(session) == []
