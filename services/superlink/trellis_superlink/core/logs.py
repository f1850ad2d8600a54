"""What a run printed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from trellis_superlink.core.principals import Principal

MAX_TEXT = 64 * 1024
"""Characters kept of one log line; the rest is cut with a note."""


@dataclass(frozen=True)
class LogLine:
    """A line to be stored. `timestamp` in Unix seconds as the executor saw it; `text` with its newline."""

    timestamp: float
    level: str
    text: str


@dataclass(frozen=True)
class LogEntry:
    """A stored line. `at` rises strictly within a run, by more than 1e-6 s from line to line (WIRE.md 3.4)."""

    at: float
    level: str
    text: str


class Logs:
    async def append(self, who: Principal, lines: Sequence[LogLine], sequence: int) -> None:
        """From the executor of a run; the batch `sequence` of its claim is stored once, however often it is sent."""

    async def read(self, who: Principal, run_id: int, *, after: float = 0.0, limit: int = 1000) -> list[LogEntry]:
        """Stored lines newer than `after`. NotFound."""

    def follow(self, who: Principal, run_id: int, *, after: float = 0.0) -> AsyncIterator[list[LogEntry]]:
        """Batches of lines newer than `after` as they come; ends when the run is finished and all was told. NotFound."""
