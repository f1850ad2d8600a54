"""The runs this node works for: what the SuperLink says of them, their FABs, the state of their contexts."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from trellis_wire import config, fab
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import message_pb2

from trellis_supernode.fleet import FleetClient, Refused
from trellis_supernode.ledger import Ledger, RunRow
from trellis_supernode.objects import sync_folder
from trellis_supernode.policy import Asked, Gate

_log = logging.getLogger(__name__)


class RunBook:
    """Learns of a run with its first message and keeps it until it is forgotten."""

    def __init__(
        self, fleet: FleetClient, ledger: Ledger, fabs: Path, node_config: config.Config, gate: Gate | None = None
    ) -> None:
        """`gate` None: every run may use this site."""
        self._gate = gate
        self._fleet = fleet
        self._ledger = ledger
        self._fabs = fabs
        self._node_config = config.to_appio(node_config)
        self._infos: dict[int, appio_pb2.RunInfo] = {}
        self._problems: dict[int, str] = {}
        self._learning: dict[int, asyncio.Lock] = {}
        self._to_judge: set[int] = set()  # known from an earlier life, when the policy may have been another
        self.states: dict[int, Tree] = {}

    def open(self, rows: Iterable[RunRow]) -> None:
        """Takes up what was kept."""
        self._fabs.mkdir(parents=True, exist_ok=True)
        for row in rows:
            self._infos[row.run_id] = appio_pb2.RunInfo.FromString(row.info)
            if self._gate is not None:
                self._to_judge.add(row.run_id)
            if row.problem:
                self._problems[row.run_id] = row.problem
            if row.state is not None:
                self.states[row.run_id] = Tree.from_edge(message_pb2.ObjectTree.FromString(row.state))

    @property
    def ids(self) -> list[int]:
        """The runs that this node keeps anything of."""
        return list(self._infos)

    def usable(self, run_id: int) -> bool:
        """Whether the run is known, may use this site, and its app can be used."""
        return self._known(run_id) and run_id not in self._problems

    def _known(self, run_id: int) -> bool:
        return run_id in self._infos and run_id not in self._to_judge

    def problem(self, run_id: int) -> str | None:
        """Why the run's app cannot be used here, if so."""
        return self._problems.get(run_id)

    def info(self, run_id: int, node_id: int) -> appio_pb2.RunInfo:
        """What an executor is told of a run, on behalf of the node that the message is for."""
        info = appio_pb2.RunInfo()
        info.CopyFrom(self._infos[run_id])
        info.node_id = node_id
        for key, value in self._node_config.items():
            info.node_config[key].CopyFrom(value)
        return info

    async def learn(self, run_id: int) -> None:
        """Asks the SuperLink about a run that is new, and fetches its FAB where the site's policy lets it in. RunOver,
        Refused, OSError, sqlite3.Error, AuditUnavailable."""
        if self._known(run_id):
            return
        async with self._learning.setdefault(run_id, asyncio.Lock()):
            if self._known(run_id):
                return
            run = await self._fleet.run(run_id)
            asked = Asked(run_id, run.fab_id, run.fab_hash, run.account_name, run.federation)
            problem = None if self._gate is None else await self._gate.denial(asked)
            if problem is None:
                problem = await self._fetch_fab(asked)
            if problem is None and self._gate is not None:
                problem = await self._gate.renamed(asked, self._path(asked.fab_hash).read_bytes())
            info = appio_pb2.RunInfo(
                run_id=run_id,
                fab_id=run.fab_id,
                fab_version=run.fab_version,
                fab_hash=run.fab_hash,
                override_config=config.to_appio(config.from_edge(run.override_config)),
                series_id=run.series_id,
            )
            if problem is not None:
                _log.error("The run's app cannot be used: %s", problem)
                self._problems[run_id] = problem
            else:
                self._problems.pop(run_id, None)
            await self._ledger.keep_run(RunRow(run_id, info.SerializeToString(), problem))
            self._infos[run_id] = info
            self._to_judge.discard(run_id)
        self._learning.pop(run_id, None)
        _log.info("Working for a new run", extra={"fab_id": run.fab_id, "fab_version": run.fab_version})

    async def _fetch_fab(self, asked: Asked) -> str | None:
        """What is wrong with the FAB, or None once it is kept."""
        fab_hash = asked.fab_hash
        if re.fullmatch(r"[0-9a-f]{64}", fab_hash) is None:
            return f"The SuperLink names a FAB by {fab_hash!r}, which is no SHA-256."
        looks_at_signatures = self._gate is not None and self._gate.looks_at_signatures
        if self._path(fab_hash).exists() and not looks_at_signatures:
            return None
        try:
            content, signatures = await self._fleet.fab(asked.run_id, fab_hash)
        except Refused as error:
            if not error.final:
                raise
            return f"The SuperLink does not hand out the run's FAB: {error}"
        if self._gate is not None and (denial := await self._gate.unsigned(asked, signatures)) is not None:
            return denial
        return await asyncio.to_thread(_keep_fab, content, fab_hash, self._path(fab_hash))

    def _path(self, fab_hash: str) -> Path:
        return self._fabs / f"{fab_hash}.fab"

    def fab(self, run_id: int, fab_hash: str) -> bytes | None:
        """The FAB of a run; None for any other."""
        info = self._infos.get(run_id)
        if info is None or info.fab_hash != fab_hash or not self.usable(run_id):
            return None
        return self._path(fab_hash).read_bytes()

    def forget(self, run_id: int) -> None:
        """Drops everything but what the ledger holds."""
        info = self._infos.pop(run_id, None)
        self._problems.pop(run_id, None)
        self._to_judge.discard(run_id)
        self.states.pop(run_id, None)
        if info is not None and not any(other.fab_hash == info.fab_hash for other in self._infos.values()):
            self._path(info.fab_hash).unlink(missing_ok=True)


def _keep_fab(content: bytes, fab_hash: str, path: Path) -> str | None:
    """Verifies and keeps a FAB; what is wrong with it, or None."""
    if fab.fab_hash(content) != fab_hash:
        return "The FAB that the SuperLink sent is not the run's: its SHA-256 differs."
    try:
        fab.inspect(content)
    except fab.FabError as error:
        return str(error)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)
    return None
