"""Files that a run leaves behind: a table and a place for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trellis_superlink.core.principals import Principal


@dataclass(frozen=True)
class Artifact:
    run_id: int
    name: str
    size: int
    digest: str  # lowercase hex SHA-256
    created_at: float


class Artifacts:
    async def add(self, who: Principal, name: str, content: Path) -> Artifact:
        """From the executor of a run; the file is taken over (moved, synced) before the row is committed."""

    async def list(self, who: Principal, run_id: int) -> list[Artifact]:
        """NotFound, RunUnfinished while the run goes on."""
