"""An app that hunts for the credentials of its hosts and for ways to speak as somebody else, in the real images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from container_world import APPS, trained
from trellis_testing import FederationContainer

DOORS = "superlink:9091 superlink:9092 superlink:9093 superlink:8000 supernode:9094"


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(600)
async def test_it_finds_none(sites: FederationContainer) -> None:
    result = await trained(sites, APPS / "hunter", {"doors": DOORS})
    assert result.outcome == "completed", f"{result.reason}\n{result.log}"
    lines = re.findall(r"^(serverapp|clientapp): (.*)$", result.log, re.MULTILINE)
    tried = {where: int(line.removeprefix("tried ")) for where, line in lines if line.startswith("tried ")}
    assert set(tried) == {"serverapp", "clientapp"}
    assert min(tried.values()) > 50
    for role in tried:
        met = " ".join(line for where, line in lines if where == role and line.startswith("met "))
        assert f"trellis-{role}" in met
        assert "tini" in met
    assert [line for line in lines if not line[1].startswith(("tried ", "met "))] == []


def test_the_hunt_finds_what_lies_open(tmp_path: Path) -> None:
    """Without a fence, from a process of the same user."""
    key = tmp_path / "tls.key"
    key.write_text("secret")
    hunt = """
import os
from hunter.hunt import Hunt
h = Hunt()
print(*h.environment(), *h.descriptors(), *h.processes([os.getppid()]), sep="\\n")
"""
    with key.open() as file:
        found = subprocess.run(
            [sys.executable, "-c", hunt],
            cwd=APPS / "hunter",
            env={"JOIN_TOKEN": "secret"},
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
    assert "variable JOIN_TOKEN" in found
    assert f"descriptor {key}" in found
    assert re.search(rf"^/proc/{os.getpid()}/environ of ", found, re.MULTILINE)
