"""Runs: their life (pending -> starting -> running -> finished), their FABs, who works on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from trellis_superlink.core.principals import Principal
from trellis_wire.config import Scalar


class Status(StrEnum):
    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"


class Outcome(StrEnum):
    """How a run finished; NONE before that. The strings are those of the edge protocol (WIRE.md 3.5)."""

    NONE = ""
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Run:
    """A run as everybody may see it. Times are Unix seconds, None where not reached; `details` is the reason, or for
    a pending run the notice why it waits."""

    run_id: int
    fab_id: str
    fab_version: str
    fab_hash: str
    override_config: Mapping[str, Scalar]
    federation: str
    owner_id: str
    owner_name: str
    status: Status
    outcome: Outcome
    details: str
    pending_at: float
    starting_at: float | None
    running_at: float | None
    finished_at: float | None
    bytes_sent: int
    bytes_received: int
    clientapp_runtime: float


@dataclass(frozen=True)
class HistoryEntry:
    at: float
    status: Status
    outcome: Outcome
    details: str


@dataclass(frozen=True)
class Fab:
    fab_hash: str
    content: bytes


class Runs:
    async def start(
        self, who: Principal, fab: bytes, *, override_config: Mapping[str, Scalar], federation: str = "default"
    ) -> Run:
        """Stores the FAB and a pending run. BadFab, BadConfig."""

    async def stop(self, who: Principal, run_id: int) -> None:
        """Ends the run as stopped at once; its executor is told. NotFound, RunFinished."""

    async def list(self, who: Principal, *, limit: int | None = None, skip: int = 0) -> list[Run]:
        """Newest first."""

    async def get(self, who: Principal, run_id: int) -> Run:
        """NotFound also for a node that never got a message of the run."""

    async def history(self, who: Principal, run_id: int) -> list[HistoryEntry]: ...

    async def fab(self, who: Principal, fab_hash: str, run_id: int | None = None) -> Fab:
        """The FAB; a node must name a run it got messages of, an executor gets its run's only. NotFound."""

    async def ended(self, who: Principal, run_ids: Sequence[int]) -> list[int]:
        """Of these runs, the finished and the unknown ones (for nodes that keep state per run)."""

    async def authenticate(self, token: str) -> Principal:
        """The executor that holds this run token. Unauthenticated for an unknown one, RunOver when the run is over."""

    async def running(self, who: Principal) -> None:
        """The app is loaded: starting -> running (again: nothing). RunOver."""

    async def finish(
        self, who: Principal, outcome: Outcome, reason: str, *, state: Parcel | None = None
    ) -> Sequence[str]:
        """Ends the run. With a state whose objects are not all here: returns the missing ids and changes nothing else;
        finish again after storing them. Finishing twice is fine."""
