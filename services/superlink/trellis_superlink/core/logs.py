"""What a run printed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from trellis_superlink.core import access
from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import RunOver
from trellis_superlink.core.principals import Principal
from trellis_superlink.store.database import Tx
from trellis_superlink.store.signals import log_topic
from trellis_superlink.store.tables import log_cursors, logs, runs

_log = logging.getLogger(__name__)

MAX_TEXT = 64 * 1024
"""Characters kept of one log line; the rest is cut with a note."""

STEP = 2e-6
"""Seconds between two lines of a run at least: stock asks for lines newer than the last by more than 1e-6."""

LAST_LINES = 600.0
"""Seconds after a run's end that its executor may still bring lines: it learns of the end last."""

_BATCH = 1000


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
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def append(self, who: Principal, lines: Sequence[LogLine], sequence: int) -> None:
        """From the executor of a run; the batch `sequence` of its claim is stored once, however often it is sent.
        RunOver a while after the run's end."""
        run_id, claim = who.run, who.claim
        for line in lines:
            if len(line.text) > MAX_TEXT:
                _log.warning("A log line was cut: it has %d characters", len(line.text))

        def write(tx: Tx) -> None:
            ended = tx.conn.scalar(select(runs.c.finished_at).where(runs.c.run_id == run_id))
            if ended is not None and self._ground.clock() - ended > LAST_LINES:
                raise RunOver("The run is over, and its log with it.")
            stored = tx.conn.scalar(select(log_cursors.c.sequence).where(log_cursors.c.claim == claim))
            if stored is None:
                tx.conn.execute(insert(log_cursors).values(claim=claim, run_id=run_id, sequence=sequence))
            elif sequence <= stored:
                return
            else:
                tx.conn.execute(update(log_cursors).where(log_cursors.c.claim == claim).values(sequence=sequence))
            self.write(tx, run_id, lines)

        await self._ground.db.write(write)

    def write(self, tx: Tx, run_id: int, lines: Sequence[LogLine]) -> None:
        """Appends lines inside a transaction: also how the SuperLink itself says something about a run."""
        now = self._ground.clock()
        last = tx.conn.scalar(select(func.max(logs.c.at)).where(logs.c.run_id == run_id)) or 0.0
        rows = []
        for line in lines:
            # An executor's clock may be ahead: its lines are not from the future.
            last = max(min(line.timestamp, now), last + STEP)
            rows.append({"run_id": run_id, "at": last, "level": line.level[:16], "text": _cut(line.text)})
        if rows:
            tx.conn.execute(insert(logs), rows)
            tx.signal(log_topic(run_id))

    def note(self, tx: Tx, run_id: int, text: str, *, level: str = "WARNING") -> None:
        """A line of the SuperLink's own."""
        self.write(tx, run_id, [LogLine(self._ground.clock(), level, f"{level}: {text}\n")])

    async def read(self, who: Principal, run_id: int, *, after: float = 0.0, limit: int = _BATCH) -> list[LogEntry]:
        """Stored lines newer than `after`. NotFound."""
        entries, _finished = await self._ground.db.read(lambda conn: self._read(conn, who, run_id, after, limit))
        return entries

    async def follow(self, who: Principal, run_id: int, *, after: float = 0.0) -> AsyncIterator[list[LogEntry]]:
        """Batches of lines newer than `after` as they come; ends when the run is over and all was told. NotFound."""
        with self._ground.signals.listen(log_topic(run_id)) as listener:
            while True:
                position = after
                entries, finished = await self._ground.db.read(
                    lambda conn, at=position: self._read(conn, who, run_id, at, _BATCH)  # type: ignore[misc]
                )
                if entries:
                    yield entries
                    after = entries[-1].at
                if len(entries) < _BATCH:
                    if finished:
                        return
                    await listener.wait()

    def _read(
        self, conn: Connection, who: Principal, run_id: int, after: float, limit: int
    ) -> tuple[list[LogEntry], bool]:
        run = access.run_for(conn, who, run_id)
        rows = conn.execute(
            select(logs.c.at, logs.c.level, logs.c.text)
            .where(logs.c.run_id == run_id, logs.c.at > after + 1e-6)
            .order_by(logs.c.at)
            .limit(limit)
        )
        return [LogEntry(row.at, row.level, row.text) for row in rows], run.status == "finished"


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]}... [cut here: {len(text) - MAX_TEXT} more characters]\n"
