"""Bytes that nodes moved for each run, brought into the database in batches; a crash loses the last second of them."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import bindparam, update

from trellis_superlink.core.base import Ground
from trellis_superlink.store.database import Tx
from trellis_superlink.store.tables import runs

_EVERY = 1.0


class Ledger:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._sent: Counter[int] = Counter()
        self._received: Counter[int] = Counter()

    def sent(self, run_id: int, size: int) -> None:
        """`size` bytes went to a node."""
        self._sent[run_id] += size
        self._soon()

    def received(self, run_id: int, size: int) -> None:
        """`size` bytes came from a node."""
        self._received[run_id] += size
        self._soon()

    def _soon(self) -> None:
        self._ground.deadlines.earlier("runs/ledger", self._ground.clock() + _EVERY, self.flush)

    async def flush(self) -> None:
        sent, self._sent = self._sent, Counter()
        received, self._received = self._received, Counter()
        rows = [{"id": run, "out": sent[run], "in": received[run]} for run in {*sent, *received}]
        if not rows:
            return

        def write(tx: Tx) -> None:
            tx.conn.execute(_ADD, rows)

        try:
            await self._ground.db.write(write)
        except BaseException:
            self._sent.update(sent)
            self._received.update(received)
            raise


_ADD = (
    update(runs)
    .where(runs.c.run_id == bindparam("id"))
    .values(bytes_sent=runs.c.bytes_sent + bindparam("out"), bytes_received=runs.c.bytes_received + bindparam("in"))
)
