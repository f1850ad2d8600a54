"""Apps that several tasks of a run ask for at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from trellis_runner.apps import Apps
from trellis_wire import fab
from trellis_wire.pb.appio import appio_pb2

PYPROJECT = """
[project]
name = "small"
version = "1.0.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "small:server"
clientapp = "small:client"
"""


async def test_tasks_of_a_run_that_come_at_once_share_one_copy(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "small.py").write_text("server = client = None\n")
    content = fab.build(source)
    fetched = 0

    async def fetch(_hash: str) -> bytes:
        nonlocal fetched
        fetched += 1
        await asyncio.sleep(0)  # lets the others come in
        return content

    apps = Apps(tmp_path / "apps")
    run = appio_pb2.RunInfo(run_id=5, fab_hash=fab.fab_hash(content))
    opened = await asyncio.gather(*(apps.open(run, fetch) for _ in range(3)))
    assert fetched == 1
    assert {app.app_dir.stat().st_ino for app in opened} == {opened[0].app_dir.stat().st_ino}
    assert (opened[0].app_dir / "small.py").exists()
