"""Who works on what: the tasks of this node and the executors that attend."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from dataclasses import dataclass, field
from typing import Final, Protocol

from trellis_wire.messages import Metadata
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2

_log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
RECONNECT_SECONDS: Final = 10.0
"""How long an executor whose stream broke keeps its tasks."""
RESTORE_SECONDS: Final = 3.0
"""How long a task of this node's earlier life waits for the executor that may still be working on it."""
QUEUE: Final = 16
"""Tasks that may wait for others of their run; more are left at the SuperLink."""


Orders = asyncio.Queue[appio_pb2.Order | None]
"""What one stream of an executor is to carry; None ends it."""


@dataclass
class Task:
    """An instruction that is being worked on or waits for it. `reply` are the trees on their way back."""

    metadata: Metadata
    tree: Tree
    token: str
    attempts: int = 0
    executor_id: str | None = None
    handed: int = 0  # times
    reserved: bool = False
    reply: tuple[Tree, ...] = ()
    finishing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def message_id(self) -> str:
        return self.metadata.message_id

    @property
    def run_id(self) -> int:
        return self.metadata.run_id


@dataclass
class Executor:
    """One that attends, or attended until a moment ago (`orders` None)."""

    executor_id: str
    slots: int = 0
    reported: int = 0
    orders: Orders | None = None
    leaving: asyncio.TimerHandle | None = None
    tokens: set[str] = field(default_factory=set)

    @property
    def free(self) -> int:
        """How much more it takes: its own report may be older than what was handed to it, our count knows nothing of
        what it is still busy with, or of its wish to take no more."""
        return 0 if self.orders is None else max(0, min(self.slots - len(self.tokens), self.reported))


class Owner(Protocol):
    """Whose desk it is."""

    def make_work(self, task: Task) -> appio_pb2.Work:
        """What an executor is to be told of a task."""

    def gave_up(self, task: Task) -> None:
        """The task is off the desk: its executors kept dying."""

    def retried(self, task: Task) -> None:
        """An executor was lost with the task; it is handed out again."""

    def expired(self, task: Task) -> None:
        """The task is off the desk: nobody waits for its reply any more."""

    def changed(self) -> None:
        """Capacity or waiting work may have changed."""


class Desk:
    """Hands tasks to free executors: one task of a run at a time, as tasks of a run share its context."""

    def __init__(self, secret: bytes, owner: Owner) -> None:
        self._secret = secret
        self._owner = owner
        self._paused = False
        self.tasks: dict[str, Task] = {}  # by token, in order of arrival
        self.executors: dict[str, Executor] = {}

    # ---- tasks ---------------------------------------------------------------------------------------------

    def token(self, message_id: str) -> str:
        """The token of an instruction's task: the same after a restart of this node, so work that goes on is known."""
        return hmac.new(self._secret, message_id.encode(), hashlib.sha256).hexdigest()

    def add(self, metadata: Metadata, tree: Tree) -> None:
        """A new task, ready to be worked on."""
        task = Task(metadata, tree, self.token(metadata.message_id))
        self.tasks.setdefault(task.token, task)
        self.assign()

    def restore(self, metadata: Metadata, tree: Tree, attempts: int) -> None:
        """A task of an earlier life: an executor may be working on it and will say so in its hello."""
        task = Task(metadata, tree, self.token(metadata.message_id), attempts, reserved=True)
        self.tasks[task.token] = task
        asyncio.get_running_loop().call_later(RESTORE_SECONDS, self._release, task)

    def _release(self, task: Task) -> None:
        task.reserved = False
        self.assign()

    def remove(self, token: str) -> None:
        """A task that is done or not wanted any more."""
        task = self.tasks.pop(token, None)
        if task is not None and task.executor_id is not None:
            executor = self.executors.get(task.executor_id)
            if executor is not None:
                executor.tokens.discard(token)
        self.assign()

    def stop_run(self, run_id: int) -> None:
        """End every task of a run."""
        for task in self.of_run(run_id):
            self.stop(task.token)

    def stop(self, token: str) -> None:
        """End a task, whoever works on it."""
        task = self.tasks.get(token)
        executor = self.executors.get(task.executor_id or "") if task is not None else None
        if executor is not None and executor.orders is not None:
            executor.orders.put_nowait(appio_pb2.Order(stop=token))
        self.remove(token)

    def pause(self) -> None:
        """Hand out no more tasks."""
        self._paused = True

    def close(self) -> None:
        """End the executors' streams; they will look for this node's next life."""
        self.pause()
        for executor in self.attending:
            assert executor.orders is not None
            executor.orders.put_nowait(None)

    def of_run(self, run_id: int) -> list[Task]:
        return [task for task in self.tasks.values() if task.run_id == run_id]

    @property
    def working(self) -> list[Task]:
        """Tasks that an executor has."""
        return [task for task in self.tasks.values() if task.executor_id is not None]

    @property
    def waiting(self) -> list[Task]:
        """Tasks that nobody works on."""
        return [task for task in self.tasks.values() if task.executor_id is None]

    @property
    def ready(self) -> list[Task]:
        """Waiting tasks that could be handed out now, at most one of each run."""
        busy = {task.run_id for task in self.working}
        ready: dict[int, Task] = {}
        for task in self.waiting:
            if task.run_id not in busy and not task.reserved:
                ready.setdefault(task.run_id, task)
        return list(ready.values())

    @property
    def attending(self) -> list[Executor]:
        return [executor for executor in self.executors.values() if executor.orders is not None]

    @property
    def capacity(self) -> int:
        """How many more instructions this node can take now. Without any executor one may wait for the first."""
        if not self.attending:
            return 1 - len(self.tasks)
        free = sum(executor.free for executor in self.attending) - len(self.ready)
        return min(free, QUEUE - len(self.waiting))

    def drop_expired(self) -> None:
        """Take tasks off the desk that nobody began in time."""
        now = time.time()
        for task in self.waiting:
            if task.metadata.expires_at <= now:
                del self.tasks[task.token]
                self._owner.expired(task)

    def assign(self) -> None:
        """Hand out what can be handed out."""
        if not self._paused:
            self.drop_expired()
            for task in self.ready:
                executor = max(self.attending, key=lambda one: one.free, default=None)
                if executor is None or executor.free == 0:
                    break
                self._hand(task, executor)
        self._owner.changed()

    def _hand(self, task: Task, executor: Executor) -> None:
        assert executor.orders is not None
        task.executor_id = executor.executor_id
        task.handed += 1
        executor.tokens.add(task.token)
        executor.orders.put_nowait(appio_pb2.Order(work=self._owner.make_work(task)))

    # ---- executors -----------------------------------------------------------------------------------------

    def arrive(self, hello: appio_pb2.ExecutorHello) -> Orders:
        """An executor attends (again); the queue of its orders."""
        executor = self.executors.setdefault(hello.executor_id, Executor(hello.executor_id))
        if executor.leaving is not None:
            executor.leaving.cancel()
            executor.leaving = None
        orders: Orders = asyncio.Queue()
        executor.orders = orders
        orders.put_nowait(appio_pb2.Order(welcome=True))
        holding = set(hello.holding)
        for token in holding:
            task = self.tasks.get(token)
            if task is None or task.executor_id not in (None, executor.executor_id):
                orders.put_nowait(appio_pb2.Order(drop=token))
            else:
                task.executor_id = executor.executor_id
                executor.tokens.add(token)
        for token in executor.tokens - holding:
            self._lost(token, executor, "it does not hold it any more")
        executor.tokens &= holding
        executor.slots = hello.slots
        executor.reported = max(0, hello.slots - len(holding))  # until it says so itself
        self.assign()
        return orders

    def report_free(self, executor_id: str, orders: Orders, free: int) -> None:
        """How much more an executor takes, in its own words; 0 with nothing in hand: it is about to end."""
        executor = self.executors.get(executor_id)
        if executor is not None and executor.orders is orders:
            executor.reported = free
            self.assign()

    def handed_back(self, executor_id: str, token: str) -> None:
        """An executor gives work back undone; that is no failed attempt."""
        executor, task = self.executors.get(executor_id), self.tasks.get(token)
        if executor is not None:
            executor.tokens.discard(token)
        if task is not None and task.executor_id == executor_id:
            task.executor_id = None
        self.assign()

    def leave(self, executor_id: str, orders: Orders) -> None:
        """An executor's stream has ended; it may come back within RECONNECT_SECONDS."""
        executor = self.executors.get(executor_id)
        if executor is None or executor.orders is not orders:
            return  # it came back on another stream already
        executor.orders = None
        while not orders.empty():
            order = orders.get_nowait()
            if order is not None and order.HasField("work"):  # never left, so it was not begun
                self.handed_back(executor_id, order.work.token)
        wait = RECONNECT_SECONDS if executor.tokens else 0.0
        executor.leaving = asyncio.get_running_loop().call_later(wait, self._gone, executor)
        self._owner.changed()

    def _gone(self, executor: Executor) -> None:
        self.executors.pop(executor.executor_id, None)
        for token in list(executor.tokens):
            self._lost(token, executor, "its executor went away")
        self.assign()

    def _lost(self, token: str, executor: Executor, why: str) -> None:
        executor.tokens.discard(token)
        task = self.tasks.get(token)
        if task is None or task.executor_id != executor.executor_id:
            return
        task.executor_id = None
        task.attempts += 1
        if task.attempts >= MAX_ATTEMPTS:
            self.tasks.pop(token)
            self._owner.gave_up(task)
        else:
            _log.warning(
                "A task is handed out again: %s", why, extra={"run_id": task.run_id, "message_id": task.message_id}
            )
            self._owner.retried(task)
