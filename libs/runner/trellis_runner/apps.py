"""The apps of an executor: FABs fetched, verified and unpacked, and a folder for each run."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from trellis_wire import config, fab
from trellis_wire.pb.appio import appio_pb2

_RUNS: Final = 64
"""Runs whose folders are kept; a ClientApp's executor is not told when a run is over."""


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
    """Unpacks a FAB for each run, which may do with its copy what it likes. Everything lies below `root` and goes away
    with `close()`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unpacked: OrderedDict[int, fab.FabInfo] = OrderedDict()  # the run used last comes last
        self._opening: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # by run

    async def open(self, run: appio_pb2.RunInfo, fetch: Callable[[str], Awaitable[bytes]]) -> App:
        """The app of a run; `fetch` gets a FAB by its hash. AppProblem."""
        app_dir, work_dir = self._folder(run.run_id) / "app", self._folder(run.run_id) / "work"
        # Several tasks of a run may come at once: the second must not take the folder from under the first.
        opening = self._opening.setdefault(run.run_id, asyncio.Lock())
        async with opening:
            info = self._unpacked.get(run.run_id)
            if info is None or info.fab_hash != run.fab_hash:
                info = self._unpacked[run.run_id] = await self._unpack(run.fab_hash, app_dir, fetch)
        self._unpacked.move_to_end(run.run_id)
        while len(self._unpacked) > _RUNS:
            self.forget(next(iter(self._unpacked)))
        try:
            run_config = config.fuse(info.config, config.from_appio(run.override_config))
        except config.ConfigError as error:
            raise AppProblem(str(error)) from error
        work_dir.mkdir(exist_ok=True)
        return App(info, app_dir, work_dir, run_config)

    async def _unpack(self, fab_hash: str, app_dir: Path, fetch: Callable[[str], Awaitable[bytes]]) -> fab.FabInfo:
        content = await fetch(fab_hash)
        if fab.fab_hash(content) != fab_hash:
            raise AppProblem(f"The FAB that arrived is not {fab_hash}: its SHA-256 differs.")
        shutil.rmtree(app_dir, ignore_errors=True)
        app_dir.mkdir(parents=True)
        try:
            return fab.unpack(content, app_dir)
        except fab.FabError as error:
            raise AppProblem(f"The app cannot be unpacked: {error}") from error

    def _folder(self, run_id: int) -> Path:
        return self._root / "runs" / str(run_id)

    def forget(self, run_id: int) -> None:
        """Remove what a run has in its folder."""
        self._unpacked.pop(run_id, None)
        shutil.rmtree(self._folder(run_id), ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._root, ignore_errors=True)
