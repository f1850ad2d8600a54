"""Composes the core: one `Core` per SuperLink process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CoreConfig:
    """What an operator decides about the core; times in seconds, sizes in bytes.

    `database` None keeps everything in temporary files that go away with the process.
    """

    database: Path | None = None
    storage_dir: Path | None = None
    retention: float | None = None
    open_registration: bool = True
    executor_lost_after: float = 30.0
    executor_absent_after: float = 10.0
    executor_hint: str = "Start one: flwr-serverapp --serverappio-api-address <this SuperLink>:9091"


class Core:
    """`core = await Core.open(config)`; then `core.runs`, `.nodes`, `.mail`, `.objects`, `.logs`, `.executors`,
    `.artifacts`; at the end `await core.close()`."""

    runs: Runs
    nodes: Nodes
    mail: Mail
    objects: Objects
    logs: Logs
    executors: Executors
    artifacts: Artifacts

    @classmethod
    async def open(cls, config: CoreConfig) -> Core: ...

    async def close(self) -> None: ...

    async def problem(self) -> str | None:
        """Why this SuperLink is not ready (database unreachable, disk full), or None. For /readyz."""

    async def counts(self) -> Counts:
        """Runs by state, nodes online, messages waiting, objects and their bytes. For /metrics; one short read."""
