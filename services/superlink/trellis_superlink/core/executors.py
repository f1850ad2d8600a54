"""Executors of ServerApps: who attends, what they hold, what they are handed.

Who attends is known to this process only; who holds which run is a claim in the database. So after a restart every
claim waits for its executor to come back with its token, for as long as one that fell silent is waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, select, update

from trellis_superlink.core.base import Ground
from trellis_superlink.core.claims import Claim, Claims, hash_of
from trellis_superlink.core.logs import Logs
from trellis_superlink.core.parcels import State
from trellis_superlink.core.principals import Principal
from trellis_superlink.core.runs import Outcome, Run, Runs, Status
from trellis_superlink.store.database import Tx
from trellis_superlink.store.errors import TryAgainLater
from trellis_superlink.store.signals import PENDING_RUNS
from trellis_superlink.store.tables import runs

_log = logging.getLogger(__name__)

MAX_STARTS = 3
"""How often a run is handed out whose executors are lost before its app runs: the app itself may be why."""


@dataclass(frozen=True)
class Hello:
    """How an executor introduces itself (ExecutorHello of the interior protocol)."""

    executor_id: str
    slots: int
    version: str = ""
    guest_flwr_version: str = ""
    host: str = ""
    holding: Sequence[str] = ()


@dataclass(frozen=True)
class Work:
    """A run to be hosted; `token` opens this run only."""

    token: str
    run: Run
    state: State | None


@dataclass(frozen=True)
class Stop:
    """The run was stopped: end it now."""

    token: str


@dataclass(frozen=True)
class Drop:
    """The token is not valid (any more): forget the work."""

    token: str


Order = Work | Stop | Drop


@dataclass(frozen=True)
class Attending:
    """An executor as the operator sees it."""

    executor_id: str
    host: str
    version: str
    guest_flwr_version: str
    slots: int
    free: int
    holding: Sequence[int]


class Attendance:
    """One executor's stay. Iterate `orders()`; call the others as its reports come; `leave()` when the stream ends,
    however it ends: what it holds stays its own for `executor_lost_after` seconds."""

    def __init__(self, executors: Executors, hello: Hello) -> None:
        self._executors = executors
        self.hello = hello
        self.free = max(hello.slots - len(hello.holding), 0)
        self.heard_at = 0.0
        self.holding: dict[int, str] = {}  # run id -> token
        self._orders: asyncio.Queue[Order | None] = asyncio.Queue()

    async def orders(self) -> AsyncIterator[Order]:
        """What the executor is to do, as it comes; ends when a newer stay of the same executor takes over."""
        while (order := await self._orders.get()) is not None:
            yield order

    def free_slots(self, count: int) -> None:
        """How much more it takes now."""
        self.free = count
        self.alive()
        if count > 0:
            self._executors.look_for_work()

    def alive(self) -> None:
        """It is there; due every 5 s."""
        self._executors.heard(self)

    async def handed_back(self, token: str) -> None:
        """Work given back undone: pending again if the app had not started, else failed."""
        self.alive()
        await self._executors.handed_back(self, token)

    def leave(self) -> None:
        """The stream is over."""
        self._executors.left(self)

    def give(self, order: Order | None) -> None:
        self._orders.put_nowait(order)


class Executors:
    def __init__(
        self,
        ground: Ground,
        runs_: Runs,
        claims: Claims,
        logs: Logs,
        *,
        lost_after: float,
        absent_after: float,
        hint: str,
    ) -> None:
        self._ground = ground
        self._runs = runs_
        self._claims = claims
        self._logs = logs
        self._lost_after = lost_after
        self._absent_after = absent_after
        self._hint = hint
        self._stays: dict[str, Attendance] = {}
        self._listener = ground.signals.listen(PENDING_RUNS)
        self._task: asyncio.Task[None] | None = None
        runs_.when_over(self._run_over)

    async def load(self) -> None:
        """At start: claims wait for their executors; what is pending for anybody."""
        for claim in await self._ground.db.read(self._claims.open):
            self._await_return(claim.run_id, claim.executor_id, self._ground.clock() + self._lost_after)
        self._task = asyncio.get_running_loop().create_task(self._assign_for_ever())
        self.look_for_work()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for stay in self._stays.values():
            stay.give(None)
        self._listener.close()

    def attending(self) -> list[Attending]:
        """Who is here now."""
        return [
            Attending(
                stay.hello.executor_id,
                stay.hello.host,
                stay.hello.version,
                stay.hello.guest_flwr_version,
                stay.hello.slots,
                stay.free,
                sorted(stay.holding),
            )
            for stay in self._stays.values()
        ]

    async def attend(self, who: Principal, hello: Hello) -> Attendance:
        """Welcomes an executor; one with the same id that was attending before is replaced. Of the work it says it
        holds, what is not its own (any more) is answered with Drop; a claim of its own that it does not know of never
        reached it, or was lost with its process."""
        stay = Attendance(self, hello)
        older = self._stays.get(hello.executor_id)
        if older is not None:
            self.left(older)
            older.give(None)

        def match(tx: Tx) -> dict[int, str]:
            own = {claim.token_hash: claim for claim in self._claims.open(tx.conn, hello.executor_id)}
            kept: dict[int, str] = {}
            for token in hello.holding:
                claim = own.pop(hash_of(token), None)
                if claim is not None:
                    kept[claim.run_id] = token
            for claim in own.values():
                self._give_up(tx, claim, "The executor came back without the run: its process was lost.")
            return kept

        stay.holding = await self._ground.db.write(match)
        for run_id in stay.holding:
            self._ground.deadlines.cancel(_key(run_id))
        for token in set(hello.holding) - set(stay.holding.values()):
            stay.give(Drop(token))
        self._stays[hello.executor_id] = stay
        self._ground.deadlines.cancel("executors/absent")
        self.heard(stay)
        self.look_for_work()
        _log.info("executor attends", extra={"executor": hello.executor_id, "slots": hello.slots, "host": hello.host})
        return stay

    # ---- assigning

    def look_for_work(self) -> None:
        self._listener.notify()

    async def _assign_for_ever(self) -> None:
        while True:
            await self._listener.wait()
            try:
                await self._assign()
            except TryAgainLater as error:
                _log.warning("cannot assign runs now", extra={"error": str(error)})
                self._ground.deadlines.earlier("executors/assign", self._ground.clock() + 1, self.look_for_work)
            except Exception:
                _log.exception("assigning runs failed")

    async def _assign(self) -> None:
        while True:
            free = sum(max(stay.free, 0) for stay in self._stays.values())
            pending = await self._ground.db.read(partial(self._pending, limit=max(free, 1)))
            if not pending:
                return
            if not self._stays:
                at = self._ground.clock() + self._absent_after
                self._ground.deadlines.earlier("executors/absent", at, self._nobody_here)
                return
            if not free:
                return
            for run_id in pending:
                stay = max(self._stays.values(), key=lambda stay: stay.free, default=None)
                if stay is None or stay.free <= 0:
                    break
                await self._hand(stay, run_id)

    def _pending(self, conn: Connection, limit: int) -> Sequence[int]:
        query = select(runs.c.run_id).where(runs.c.status == Status.PENDING).order_by(runs.c.pending_at)
        return conn.scalars(query.limit(limit)).all()

    async def _hand(self, stay: Attendance, run_id: int) -> None:
        stay.free -= 1

        def claim(tx: Tx) -> Work | None:
            run = self._runs.starting(tx, run_id)
            if run is None:
                return None
            return Work(self._claims.add(tx, run_id, stay.hello.executor_id), run, None)

        try:
            work = await self._ground.db.write(claim)
        except BaseException:
            stay.free += 1
            raise
        if work is None:
            stay.free += 1
            return
        stay.holding[run_id] = work.token
        stay.give(work)
        if self._stays.get(stay.hello.executor_id) is not stay:  # it left while we wrote
            self._await_return(run_id, stay.hello.executor_id, stay.heard_at + self._lost_after)
        _log.info("run assigned", extra={"run_id": run_id, "executor": stay.hello.executor_id})

    async def _nobody_here(self) -> None:
        if self._stays:
            return
        notice = f"No executor has been connected for {self._absent_after:.0f} s. {self._hint}"

        def tell(tx: Tx) -> int:
            waiting = tx.conn.scalars(
                select(runs.c.run_id).where(runs.c.status == Status.PENDING, runs.c.details != notice)
            ).all()
            for run_id in waiting:
                tx.conn.execute(update(runs).where(runs.c.run_id == run_id).values(details=notice))
                self._logs.note(tx, run_id, notice)
            return len(waiting)

        if await self._ground.db.write(tell):
            _log.warning(notice)

    # ---- losing

    def heard(self, stay: Attendance) -> None:
        stay.heard_at = self._ground.clock()
        key = f"executor/{stay.hello.executor_id}"
        self._ground.deadlines.earlier(key, stay.heard_at + self._lost_after, lambda: self._silent(stay))

    def left(self, stay: Attendance) -> None:
        if self._stays.get(stay.hello.executor_id) is not stay:
            return
        del self._stays[stay.hello.executor_id]
        self._ground.deadlines.cancel(f"executor/{stay.hello.executor_id}")
        for run_id in stay.holding:
            self._await_return(run_id, stay.hello.executor_id, stay.heard_at + self._lost_after)
        self.look_for_work()  # with nobody left, pending runs get their notice
        _log.info("executor left", extra={"executor": stay.hello.executor_id, "holding": len(stay.holding)})

    def _silent(self, stay: Attendance) -> None:
        if self._stays.get(stay.hello.executor_id) is not stay:
            return
        due = stay.heard_at + self._lost_after
        if due > self._ground.clock():
            key = f"executor/{stay.hello.executor_id}"
            self._ground.deadlines.set(key, due, lambda: self._silent(stay))
            return
        self.left(stay)
        stay.give(None)

    def _await_return(self, run_id: int, executor_id: str, at: float) -> None:
        async def lose() -> None:
            reason = f"The executor {executor_id} was lost: not heard of for {self._lost_after:.0f} s."

            def give_up(tx: Tx) -> None:
                for claim in self._claims.open(tx.conn, executor_id):
                    if claim.run_id != run_id:
                        continue
                    if self._runs.starts(tx.conn, run_id) < MAX_STARTS:
                        self._give_up(tx, claim, reason)
                    else:
                        self._fail(tx, run_id, reason)

            await self._ground.db.write(give_up)

        self._ground.deadlines.set(_key(run_id), at, lose)

    def _fail(self, tx: Tx, run_id: int, reason: str) -> None:
        if self._runs.end(tx, run_id, Outcome.FAILED, reason):
            self._logs.note(tx, run_id, reason, level="ERROR")

    def _give_up(self, tx: Tx, claim: Claim, reason: str) -> None:
        """The holder of a claim does not work on it (any more)."""
        if claim.status == Status.STARTING:
            self._claims.remove(tx, claim.token_hash)
            self._runs.pending_again(tx, claim.run_id, "")
        else:
            self._fail(tx, claim.run_id, reason)
        tx.afterwards(lambda: self._ground.deadlines.cancel(_key(claim.run_id)))

    async def handed_back(self, stay: Attendance, token: str) -> None:
        def back(tx: Tx) -> int | None:
            claim = self._claims.find(tx.conn, hash_of(token))
            if claim is None or claim.status == Status.FINISHED or claim.executor_id != stay.hello.executor_id:
                return None
            self._give_up(tx, claim, "The executor was stopped while the run was going on.")
            return claim.run_id

        run_id = await self._ground.db.write(back)
        if run_id is not None:
            stay.holding.pop(run_id, None)

    def _run_over(self, run_id: int, by_executor: bool) -> None:
        self._ground.deadlines.cancel(_key(run_id))
        for stay in self._stays.values():
            token = stay.holding.pop(run_id, None)
            if token is not None and not by_executor:
                stay.give(Stop(token))


def _key(run_id: int) -> str:
    return f"claim/{run_id}"
