"""The apps of an executor: FABs fetched, verified and unpacked, and a folder for each run."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from trellis_wire import config, fab
from trellis_wire.pb.appio import appio_pb2


class AppProblem(Exception):
    """The app of a run cannot be hosted; the text says why."""


@dataclass(frozen=True)
class App:
    """An unpacked app, as one run sees it."""

    info: fab.FabInfo
    app_dir: Path
    work_dir: Path
    run_config: config.Config


class Apps:
    """Unpacks each FAB once. Everything lies below `root` and goes away with `close()`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unpacked: dict[str, fab.FabInfo] = {}

    async def open(self, run: appio_pb2.RunInfo, fetch: Callable[[str], Awaitable[bytes]]) -> App:
        """The app of a run; `fetch` gets a FAB by its hash. AppProblem."""
        app_dir = self._root / "apps" / run.fab_hash
        info = self._unpacked.get(run.fab_hash)
        if info is None:
            content = await fetch(run.fab_hash)
            if fab.fab_hash(content) != run.fab_hash:
                raise AppProblem(f"The FAB that arrived is not {run.fab_hash}: its SHA-256 differs.")
            shutil.rmtree(app_dir, ignore_errors=True)
            app_dir.mkdir(parents=True)
            try:
                info = fab.unpack(content, app_dir)
            except fab.FabError as error:
                raise AppProblem(f"The app cannot be unpacked: {error}") from error
            self._unpacked[run.fab_hash] = info
        try:
            run_config = config.fuse(info.config, config.from_appio(run.override_config))
        except config.ConfigError as error:
            raise AppProblem(str(error)) from error
        work_dir = self._root / "runs" / str(run.run_id)
        work_dir.mkdir(parents=True, exist_ok=True)
        return App(info, app_dir, work_dir, run_config)

    def forget(self, run_id: int) -> None:
        """Remove what a run left in its folder."""
        shutil.rmtree(self._root / "runs" / str(run_id), ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._root, ignore_errors=True)
