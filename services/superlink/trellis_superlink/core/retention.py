"""Forgets finished runs after the time the operator set."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import delete, func, select

from trellis_superlink.core.base import Ground
from trellis_superlink.core.claims import Claims
from trellis_superlink.core.letters import Letters, MailState
from trellis_superlink.core.nodes import Nodes
from trellis_superlink.core.runs import Runs, Status
from trellis_superlink.store.database import Tx
from trellis_superlink.store.tables import (
    artifacts,
    claims,
    contexts,
    fabs,
    log_cursors,
    logs,
    messages,
    metrics,
    run_history,
    runs,
)

_log = logging.getLogger(__name__)

_AT_ONCE = 20  # runs pruned in one transaction: others wait for the writer


class Retention:
    def __init__(
        self, ground: Ground, runs_: Runs, letters: Letters, nodes: Nodes, claims_: Claims, keep_for: float
    ) -> None:
        """`keep_for`: seconds that a finished run is kept."""
        self._ground = ground
        self._letters = letters
        self._nodes = nodes
        self._claims = claims_
        self._keep_for = keep_for
        runs_.when_over(lambda _run, _by: self._due(ground.clock() + keep_for))

    async def load(self) -> None:
        await self.prune()

    async def prune(self) -> None:
        """Removes what is due, and waits for the next to be."""
        more = True
        while more:
            pruned, following = await self._ground.db.write(self._prune)
            more = pruned == _AT_ONCE
            if pruned:
                _log.info("forgot finished runs", extra={"runs": pruned})
            if following is not None:
                self._due(following + self._keep_for)

    def _due(self, at: float) -> None:
        self._ground.deadlines.earlier("runs/retention", at, self.prune)

    def _prune(self, tx: Tx) -> tuple[int, float | None]:
        before = self._ground.clock() - self._keep_for
        finished = select(runs.c.run_id).where(runs.c.status == Status.FINISHED)
        ids = tx.conn.scalars(finished.where(runs.c.finished_at <= before).limit(_AT_ONCE)).all()
        if ids:
            self._forget(tx, ids)
        self._nodes.forget_unregistered(tx, before)
        following = tx.conn.scalar(select(func.min(runs.c.finished_at)).where(runs.c.status == Status.FINISHED))
        return len(ids), following

    def _forget(self, tx: Tx, ids: Sequence[int]) -> None:
        held = list(
            tx.conn.scalars(
                select(messages.c.message_id).where(messages.c.run_id.in_(ids), messages.c.state != MailState.FREED)
            )
        )
        held += tx.conn.scalars(select(contexts.c.root_id).where(contexts.c.run_id.in_(ids)))
        self._letters.let_go(tx, held)
        files = list(tx.conn.scalars(select(artifacts.c.location).where(artifacts.c.run_id.in_(ids))))
        if files:
            tx.afterwards(lambda: self._ground.discard(files))
        for digest in tx.conn.scalars(select(claims.c.token_hash).where(claims.c.run_id.in_(ids))).all():
            self._claims.remove(tx, digest)
        for table in (messages, metrics, contexts, logs, log_cursors, artifacts, run_history, runs):
            tx.conn.execute(delete(table).where(table.c.run_id.in_(ids)))
        tx.conn.execute(delete(fabs).where(fabs.c.fab_hash.not_in(select(runs.c.fab_hash))))
