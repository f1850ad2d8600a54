"""Runs: their life (pending -> starting -> running -> finished), their FABs, who works on them."""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from trellis_wire.config import Scalar, fuse
from trellis_wire.fab import FabError, inspect
from trellis_wire.objects import ObjectError, check_head, verify_object

from trellis_superlink.core import access, trees
from trellis_superlink.core.base import Ground
from trellis_superlink.core.claims import Claims
from trellis_superlink.core.errors import BadConfig, BadFab, BadObject, Forbidden, NotFound, RunFinished, RunOver
from trellis_superlink.core.federations import Federations
from trellis_superlink.core.letters import Letters, run_going_on
from trellis_superlink.core.overrides import dump_config, load_config
from trellis_superlink.core.parcels import State
from trellis_superlink.core.permissions import Permission
from trellis_superlink.core.principals import DEFAULT_FEDERATION, SUPERLINK_NODE_ID, Kind, Principal
from trellis_superlink.core.quotas import Quotas
from trellis_superlink.store.database import Tx
from trellis_superlink.store.signals import PENDING_RUNS, log_topic, status_topic
from trellis_superlink.store.tables import contexts, fabs, run_history, runs

_log = logging.getLogger(__name__)

_INT64_MAX = 2**63 - 1


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
    """A change of a run's status. `number` rises, over all runs."""

    number: int
    at: float
    status: Status
    outcome: Outcome
    details: str


@dataclass(frozen=True)
class Fab:
    """`signatures` came with the run: a key's name -> its signature (trellis_wire.signing)."""

    fab_hash: str
    content: bytes
    signatures: Mapping[str, str] = field(default_factory=dict)


def run_of(row: Any) -> Run:
    values = row._asdict()
    del values["signatures"]
    values["override_config"] = load_config(values["override_config"])
    return Run(**values | {"status": Status(row.status), "outcome": Outcome(row.outcome)})


class Runs:
    def __init__(
        self, ground: Ground, letters: Letters, claims: Claims, federations: Federations, quotas: Quotas
    ) -> None:
        self._ground = ground
        self._quotas = quotas
        self._federations = federations
        self._letters = letters
        self._claims = claims
        self._when_over: list[Callable[[int, bool], None]] = []

    def when_over(self, listener: Callable[[int, bool], None]) -> None:
        """`listener(run_id, by_its_executor)` after each run's end."""
        self._when_over.append(listener)

    # ---- accounts

    async def start(
        self,
        who: Principal,
        fab: bytes,
        *,
        override_config: Mapping[str, Scalar],
        federation: str = DEFAULT_FEDERATION,
        signatures: Mapping[str, str] | None = None,
    ) -> Run:
        """Stores the FAB and a pending run. BadFab, BadConfig, NoFederation, OverQuota."""
        if who.kind not in (Kind.ACCOUNT, Kind.SYSTEM):
            raise Forbidden("Only an account may start runs.")
        try:
            info = await asyncio.to_thread(inspect, fab)
        except FabError as error:
            raise BadFab(str(error)) from error
        try:
            fuse(info.config, override_config)
        except ValueError as error:
            raise BadConfig(str(error)) from error

        def add(tx: Tx) -> Run:
            self._federations.require_member(tx.conn, who, federation)
            self._quotas.check_run(tx.conn, who.id, info.fab_hash, len(fab))
            if tx.conn.scalar(select(fabs.c.fab_hash).where(fabs.c.fab_hash == info.fab_hash)) is None:
                tx.conn.execute(insert(fabs).values(fab_hash=info.fab_hash, content=fab))
            run_id = SUPERLINK_NODE_ID
            while run_id <= SUPERLINK_NODE_ID:
                run_id = secrets.randbits(64)
            now = self._ground.clock()
            tx.conn.execute(
                insert(runs).values(
                    run_id=run_id,
                    fab_id=info.fab_id,
                    fab_version=info.version,
                    fab_hash=info.fab_hash,
                    override_config=dump_config(override_config),
                    signatures=json.dumps(dict(signatures)) if signatures else None,
                    federation=federation,
                    owner_id=who.id,
                    owner_name=who.name,
                    status=Status.PENDING,
                    outcome=Outcome.NONE,
                    details="",
                    pending_at=now,
                    bytes_sent=0,
                    bytes_received=0,
                    clientapp_runtime=0.0,
                )
            )
            self._note(tx, run_id, Status.PENDING, Outcome.NONE, "")
            tx.signal(PENDING_RUNS)
            return run_of(tx.conn.execute(select(runs).where(runs.c.run_id == run_id)).one())

        run = await self._ground.db.write(add)
        _log.info("run submitted", extra={"run_id": run.run_id, "fab": run.fab_id, "fab_version": run.fab_version})
        return run

    async def stop(self, who: Principal, run_id: int) -> None:
        """Ends the run as stopped at once; its executor is told. NotFound, Forbidden, RunFinished."""

        def end(tx: Tx) -> None:
            access.run_for(tx.conn, who, run_id)
            try:
                run = access.run_for(tx.conn, who, run_id, Permission.ALL_RUNS_STOP)
            except NotFound as error:
                raise Forbidden("The run is another account's.") from error  # who asks may see it
            if run.status == Status.FINISHED:
                raise RunFinished("Run is already finished")
            self.end(tx, run_id, Outcome.STOPPED, "Stopped by user.")

        if who.kind not in (Kind.ACCOUNT, Kind.SYSTEM):
            raise Forbidden("Only an account may stop runs.")
        await self._ground.db.write(end)

    async def list(
        self, who: Principal, *, federation: str | None = None, limit: int | None = None, skip: int = 0
    ) -> builtins.list[Run]:
        """Newest first; an account's own, unless it may see all; of all federations or one."""
        query = select(runs).order_by(runs.c.pending_at.desc(), runs.c.run_id).offset(min(skip, _INT64_MAX))
        if limit is not None:
            query = query.limit(min(limit, _INT64_MAX))
        if who.kind not in (Kind.ACCOUNT, Kind.SYSTEM):
            raise Forbidden("Only an account may list runs.")
        if who.kind is Kind.ACCOUNT and Permission.ALL_RUNS_SEE not in who.may:
            query = query.where(runs.c.owner_id == who.id)
        if federation is not None:
            query = query.where(runs.c.federation == federation)
        return await self._ground.db.read(lambda conn: [run_of(row) for row in conn.execute(query)])

    async def get(self, who: Principal, run_id: int) -> Run:
        """NotFound also for a node that never got a message of the run."""
        return await self._ground.db.read(lambda conn: run_of(access.run_for(conn, who, run_id)))

    async def history(self, who: Principal, run_id: int) -> builtins.list[HistoryEntry]:
        """Oldest first. NotFound."""

        def read(conn: Any) -> builtins.list[HistoryEntry]:
            access.run_for(conn, who, run_id)
            rows = conn.execute(select(run_history).where(run_history.c.run_id == run_id).order_by(run_history.c.entry))
            return [HistoryEntry(r.entry, r.at, Status(r.status), Outcome(r.outcome), r.details) for r in rows]

        return await self._ground.db.read(read)

    async def follow(self, who: Principal, run_id: int, after: int = 0) -> AsyncIterator[builtins.list[HistoryEntry]]:
        """The changes of a run's status after the one of this number, as they come; ends with the run. NotFound."""
        with self._ground.signals.listen(status_topic(run_id)) as listener:
            while True:
                entries = await self.history(who, run_id)
                news = [entry for entry in entries if entry.number > after]
                if news:
                    after = news[-1].number
                    yield news
                if entries[-1].status is Status.FINISHED:
                    return
                await listener.wait()

    async def fab(self, who: Principal, fab_hash: str, run_id: int | None = None) -> Fab:
        """The FAB; a node must name a run it got messages of, an executor gets its run's only, as long as that goes on.
        NotFound, RunOver."""

        def read(conn: Any) -> Fab:
            wanted = run_id if who.run_id is None else who.run_id
            if wanted is None:
                raise NotFound("A FAB is handed out for a run only.")
            run = access.run_for(conn, who, wanted)
            if who.run_id is not None:
                run_going_on(conn, wanted)
            if run.fab_hash != fab_hash:
                raise NotFound("The run has another FAB.")
            content = conn.scalar(select(fabs.c.content).where(fabs.c.fab_hash == fab_hash))
            return Fab(fab_hash, content, json.loads(run.signatures or "{}"))

        return await self._ground.db.read(read)

    async def ended(self, who: Principal, run_ids: Sequence[int]) -> builtins.list[int]:
        """Of these runs, the finished and the unknown ones (for nodes that keep state per run)."""
        if not run_ids:
            return []
        going_on: set[int] = set()

        def look(conn: Any) -> None:
            for batch in trees.batches(run_ids):
                query = select(runs.c.run_id).where(runs.c.run_id.in_(batch), runs.c.status != Status.FINISHED)
                going_on.update(conn.scalars(query))

        await self._ground.db.read(look)
        return [run_id for run_id in run_ids if run_id not in going_on]

    # ---- executors

    async def authenticate(self, token: str) -> Principal:
        """The executor that holds this run token, also after the run's end (calls that need it going on raise
        RunOver). Unauthenticated for an unknown token."""
        return await self._claims.holder(token)

    async def running(self, who: Principal) -> None:
        """The app is loaded: starting -> running (again: nothing). RunOver."""
        run_id = who.run

        def turn(tx: Tx) -> None:
            run_going_on(tx.conn, run_id)
            changed = tx.conn.execute(
                update(runs)
                .where(runs.c.run_id == run_id, runs.c.status == Status.STARTING)
                .values(status=Status.RUNNING, running_at=self._ground.clock())
            ).rowcount
            if changed:
                self._note(tx, run_id, Status.RUNNING, Outcome.NONE, "")

        await self._ground.db.write(turn)

    async def finish(
        self, who: Principal, outcome: Outcome, reason: str, *, state: State | None = None
    ) -> Sequence[str]:
        """Ends the run. With a state whose objects are not all here: returns the missing ids and changes nothing else;
        finish again after storing them. Finishing twice is fine. BadObject."""
        run_id = who.run
        if outcome is Outcome.NONE:
            raise BadConfig("A run ends as completed, failed or stopped.")
        if state is not None:
            _check_state(state)

        def end(tx: Tx) -> Sequence[str]:
            try:
                run_going_on(tx.conn, run_id)
            except RunOver:
                return []
            if state is not None and (missing := self._keep_state(tx, run_id, state)):
                return missing
            self.end(tx, run_id, outcome, reason, by_executor=True)
            return []

        return await self._ground.db.write(end)

    def _keep_state(self, tx: Tx, run_id: int, state: State) -> builtins.list[str]:
        root = state.tree.object_id
        kept = tx.conn.scalar(select(contexts.c.root_id).where(contexts.c.run_id == run_id))
        if kept == root and not trees.missing_below(tx.conn, [root]):
            return []
        planting = trees.Planting(state.tree, [root], state.objects)
        registered = trees.register(tx, [planting])
        self._letters.completed(tx, registered.completed)
        if kept is None:
            tx.conn.execute(insert(contexts).values(run_id=run_id, root_id=root))
        else:
            self._letters.let_go(tx, [kept])
            tx.conn.execute(update(contexts).where(contexts.c.run_id == run_id).values(root_id=root))
        return registered.missing

    # ---- inside transactions

    def end(self, tx: Tx, run_id: int, outcome: Outcome, details: str, *, by_executor: bool = False) -> bool:
        """Finishes a run and lets go of its messages; False when it was finished before: the first end counts."""
        now = self._ground.clock()
        details = details[:4000]
        changed = tx.conn.execute(
            update(runs)
            .where(runs.c.run_id == run_id, runs.c.status != Status.FINISHED)
            .values(status=Status.FINISHED, outcome=outcome, details=details, finished_at=now)
        ).rowcount
        if not changed:
            return False
        self._note(tx, run_id, Status.FINISHED, outcome, details)
        self._letters.run_over(tx, run_id)
        tx.signal(log_topic(run_id))

        def tell() -> None:
            _log.info("run finished", extra={"run_id": run_id, "outcome": outcome.value, "reason": details})
            for listener in self._when_over:
                listener(run_id, by_executor)

        tx.afterwards(tell)
        return True

    def starting(self, tx: Tx, run_id: int) -> Run | None:
        """pending -> starting, for whoever claims it first; None when it is pending no more."""
        changed = tx.conn.execute(
            update(runs)
            .where(runs.c.run_id == run_id, runs.c.status == Status.PENDING)
            .values(status=Status.STARTING, details="", starting_at=self._ground.clock())
        ).rowcount
        if not changed:
            return None
        self._note(tx, run_id, Status.STARTING, Outcome.NONE, "")
        return run_of(tx.conn.execute(select(runs).where(runs.c.run_id == run_id)).one())

    def starts(self, conn: Connection, run_id: int) -> int:
        """How often the run was handed to an executor."""
        query = select(func.count()).where(run_history.c.run_id == run_id, run_history.c.status == Status.STARTING)
        return conn.scalar(query) or 0

    def pending_again(self, tx: Tx, run_id: int, details: str) -> bool:
        """starting -> pending, when an executor gave it back before the app started."""
        changed = tx.conn.execute(
            update(runs)
            .where(runs.c.run_id == run_id, runs.c.status == Status.STARTING)
            .values(status=Status.PENDING, details=details, starting_at=None)
        ).rowcount
        if changed:
            self._note(tx, run_id, Status.PENDING, Outcome.NONE, details)
            tx.signal(PENDING_RUNS)
        return bool(changed)

    def _note(self, tx: Tx, run_id: int, status: Status, outcome: Outcome, details: str) -> None:
        tx.conn.execute(
            insert(run_history).values(
                run_id=run_id, at=self._ground.clock(), status=status, outcome=outcome, details=details
            )
        )
        tx.signal(status_topic(run_id))


def _check_state(state: State) -> None:
    nodes = state.tree.nodes()
    try:
        for object_id, content in state.objects.items():
            if object_id not in nodes:
                raise BadObject(f"Object {object_id[:16]}... came along and belongs to no state.")
            check_head(nodes[object_id], verify_object(object_id, content))
    except ObjectError as error:
        raise BadObject(str(error)) from error
