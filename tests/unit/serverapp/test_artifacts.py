"""What a run leaves in its working folder is kept with the run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trellis_wire.pb.appio import appio_pb2
from unit.runner.appio_world import Hub
from unit.runner.runner_world import SERVER

Attend = Callable[..., Any]
Outcome = appio_pb2.FinishRunRequest

LEAVE = """
os.makedirs("models/__pycache__")
open("models/final.bin", "wb").write(bytes(3_000_000))
open("models/__pycache__/x.pyc", "w").write("not this")
open("notes.txt", "w").write("learned")
os.symlink("/etc/hostname", "link")
"""


async def test_files_travel_as_one_archive_and_links_do_not(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    async with attend():
        hub.run("r1", hub.app(tmp_path / "app", SERVER, LEAVE))
        finish = await hub.finish_of("r1")
    assert finish.outcome == Outcome.COMPLETED
    name, content = hub.artifacts["r1"]
    assert name == "run-5.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert sorted(archive.namelist()) == ["models/final.bin", "notes.txt"]
        assert archive.read("notes.txt") == b"learned"
        assert len(archive.read("models/final.bin")) == 3_000_000
    assert "left 2 file(s) behind" in hub.log_of("r1")
    assert "flwr pull 5" in hub.log_of("r1")
    assert hub.calls[-1] == "FinishRun"


async def test_a_failed_run_leaves_its_files_too(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    async with attend():
        hub.run("r1", hub.app(tmp_path / "app", SERVER, 'open("half.txt", "w").write("x")\nraise ValueError("no")'))
        finish = await hub.finish_of("r1")
    assert finish.outcome == Outcome.FAILED
    assert zipfile.ZipFile(io.BytesIO(hub.artifacts["r1"][1])).namelist() == ["half.txt"]


async def test_nothing_is_sent_where_nothing_was_left(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    async with attend():
        hub.run("r1", hub.app(tmp_path / "app", SERVER, "print('nothing')"))
        await hub.finish_of("r1")
    assert "PushArtifact" not in hub.calls
