"""The audit log: who asked for what, and what became of it, as JSON lines.

Each line has what stock's event log has (Flower 1.18-1.42: timestamp, actor, event, status) and more. An action that
changes something has two lines: `started`, which is on the disk before anything is done, and how it ended, which is on
the disk before it is answered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger(__name__)

STDOUT: Final = "-"


class AuditUnavailable(Exception):
    """The audit log cannot be written now; `str(error)` says why. What may not go unnoticed is not done then."""


class Outcome(StrEnum):
    STARTED = "started"
    COMPLETED = "completed"
    DENIED = "denied"  # who asked may not, or could not say who they are
    FAILED = "failed"


@dataclass(frozen=True)
class Entry:
    """`kind`: account, node, executor, or unknown. `more`: what else is known of it, for example the node's id."""

    action: str
    outcome: Outcome
    kind: str
    actor_id: str | None
    description: str | None
    ip_address: str
    run_id: int | None = None
    fab_hash: str | None = None
    reason: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def line(self, at: datetime) -> bytes:
        told: dict[str, Any] = {
            "timestamp": at.isoformat(),
            "actor": {
                "actor_id": self.actor_id,
                "description": self.description,
                "ip_address": self.ip_address,
                "kind": self.kind,
            },
            "event": {"action": self.action, "run_id": self.run_id, "fab_hash": self.fab_hash},
            "status": self.outcome.value,
        }
        if self.reason is not None:
            told["reason"] = self.reason
        return json.dumps({**told, **self.more}).encode() + b"\n"  # control characters escaped: one entry, one line


class AuditLog:
    """Written to a file that only its owner reads, or to standard output. Lines that wait are synced together."""

    def __init__(self, target: str) -> None:
        """`target`: a path, or - for standard output. AuditUnavailable."""
        try:
            if target == STDOUT:
                self._file = os.dup(sys.stdout.fileno())
            else:
                self._file = os.open(Path(target), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditUnavailable(f"The audit log {target} cannot be written: {error.strerror}") from error
        self._regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        self._torn = self._regular and target != STDOUT and _ends_torn(Path(target))
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, entry: Entry) -> None:
        """Returns once the line is on the disk (or in the pipe). AuditUnavailable."""
        await self._add(entry)

    def note(self, entry: Entry) -> None:
        """The same without waiting, for what changes nothing."""
        self._add(entry).add_done_callback(_complain)

    def _add(self, entry: Entry) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((entry.line(datetime.now(UTC)), future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return future

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._append, b"".join(line for line, _ in batch))
            except OSError as error:
                problem = AuditUnavailable(f"The audit log cannot be written ({error.strerror}).")
                for _, future in batch:
                    if not future.done():
                        future.set_exception(problem)
            else:
                for _, future in batch:
                    if not future.done():
                        future.set_result(None)

    def _append(self, lines: bytes) -> None:
        rest = memoryview(b"\n" + lines if self._torn else lines)  # a line of its own, whatever is left of another
        while rest:
            written = os.write(self._file, rest)
            self._torn = rest[written - 1] != ord("\n")  # a disk that is full takes half a line
            rest = rest[written:]
        if self._regular:
            os.fdatasync(self._file)

    async def close(self) -> None:
        if self._writer is not None:
            await asyncio.wait({self._writer})
        os.close(self._file)


def _ends_torn(path: Path) -> bool:
    """Whether the last line is half a one: the machine went down in the middle of it."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


def _complain(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (problem := done.exception()) is not None:
        _log.error("A line of the audit log is lost: %s", problem)
