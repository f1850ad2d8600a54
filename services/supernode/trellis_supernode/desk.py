"""Who works on what: the tasks of this node and the executors that attend."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from trellis_wire.messages import Metadata
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2

_log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
RECONNECT_SECONDS: Final = 10.0
"""How long an executor whose stream broke keeps its tasks."""


@dataclass
class Task:
    """An instruction that is being worked on or waits for it."""

    metadata: Metadata
    tree: Tree
    token: str
    attempts: int = 0
    executor_id: str | None = None

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
    draining: bool = False
    orders: asyncio.Queue[appio_pb2.Order] | None = None
    leaving: asyncio.TimerHandle | None = None
    tokens: set[str] = field(default_factory=set)

    @property
    def free(self) -> int:
        """How much more it takes; counted here, as its own reports may be older than what was handed to it."""
        return 0 if self.draining or self.orders is None else max(0, self.slots - len(self.tokens))


class Desk:
    """Hands tasks to free executors: one task of a run at a time, as tasks of a run share its context.

    `make_work` builds the order of a task; `gave_up` is told of a task whose executors kept dying; `changed` is called
    whenever capacity or waiting work may have changed.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        make_work: Callable[[Task], appio_pb2.Work],
        gave_up: Callable[[Task], None],
        retried: Callable[[Task], None],
        changed: Callable[[], None],
    ) -> None:
        self._secret = secret
        self._make_work = make_work
        self._gave_up = gave_up
        self._retried = retried
        self._changed = changed
        self.tasks: dict[str, Task] = {}  # by token, in order of arrival
        self.executors: dict[str, Executor] = {}

    # ---- tasks ---------------------------------------------------------------------------------------------

    def token(self, message_id: str) -> str:
        """The token of an instruction's task: the same after a restart of this node, so work that goes on is known."""
        return hmac.new(self._secret, message_id.encode(), hashlib.sha256).hexdigest()

    def add(self, task: Task) -> None:
        """A new task."""
        self.tasks.setdefault(task.token, task)
        self._assign()

    def remove(self, token: str) -> None:
        """A task that is done or not wanted any more."""
        task = self.tasks.pop(token, None)
        if task is not None and task.executor_id is not None:
            executor = self.executors.get(task.executor_id)
            if executor is not None:
                executor.tokens.discard(token)
        self._assign()

    def stop_run(self, run_id: int) -> None:
        """End every task of a run."""
        for task in [task for task in self.tasks.values() if task.run_id == run_id]:
            executor = self.executors.get(task.executor_id or "")
            if executor is not None and executor.orders is not None:
                executor.orders.put_nowait(appio_pb2.Order(stop=task.token))
            self.remove(task.token)

    def of_run(self, run_id: int) -> list[Task]:
        return [task for task in self.tasks.values() if task.run_id == run_id]

    @property
    def waiting(self) -> list[Task]:
        """Tasks that nobody works on."""
        return [task for task in self.tasks.values() if task.executor_id is None]

    @property
    def attending(self) -> list[Executor]:
        return [executor for executor in self.executors.values() if executor.orders is not None]

    @property
    def capacity(self) -> int:
        """How many more instructions this node can take now. Without any executor one may wait for the first."""
        if not self.attending:
            return 1 - len(self.tasks)
        return sum(executor.free for executor in self.attending) - len(self.waiting)

    def _assign(self) -> None:
        busy = {task.run_id for task in self.tasks.values() if task.executor_id is not None}
        for task in list(self.waiting):
            if task.run_id in busy:
                continue
            executor = next((one for one in self.attending if one.free > 0), None)
            if executor is None:
                break
            busy.add(task.run_id)
            self._hand(task, executor)
        self._changed()

    def _hand(self, task: Task, executor: Executor) -> None:
        assert executor.orders is not None
        task.executor_id = executor.executor_id
        executor.tokens.add(task.token)
        executor.orders.put_nowait(appio_pb2.Order(work=self._make_work(task)))

    # ---- executors -----------------------------------------------------------------------------------------

    def arrive(self, hello: appio_pb2.ExecutorHello) -> asyncio.Queue[appio_pb2.Order]:
        """An executor attends (again); the queue of its orders."""
        executor = self.executors.get(hello.executor_id)
        if executor is None:
            executor = self.executors[hello.executor_id] = Executor(hello.executor_id)
        if executor.leaving is not None:
            executor.leaving.cancel()
            executor.leaving = None
        orders: asyncio.Queue[appio_pb2.Order] = asyncio.Queue()
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
        executor.draining = False
        self._assign()
        return orders

    def report_free(self, executor_id: str, orders: asyncio.Queue[appio_pb2.Order], free: int) -> None:
        """An executor that holds nothing and takes nothing is about to end."""
        executor = self.executors[executor_id]
        if executor.orders is orders:
            executor.draining = free == 0 and not executor.tokens
            self._assign()

    def handed_back(self, executor_id: str, token: str) -> None:
        """An executor gives work back undone; that is no failed attempt."""
        executor = self.executors[executor_id]
        executor.tokens.discard(token)
        task = self.tasks.get(token)
        if task is not None and task.executor_id == executor_id:
            task.executor_id = None
        self._assign()

    def leave(self, executor_id: str, orders: asyncio.Queue[appio_pb2.Order]) -> None:
        """An executor's stream has ended; it may come back within RECONNECT_SECONDS."""
        executor = self.executors.get(executor_id)
        if executor is None or executor.orders is not orders:
            return  # it came back on another stream already
        executor.orders = None
        # Work that never left the queue was not begun.
        for order in _queued_work(orders):
            self.handed_back(executor_id, order.work.token)
        wait = RECONNECT_SECONDS if executor.tokens else 0.0
        executor.leaving = asyncio.get_running_loop().call_later(wait, self._gone, executor)
        self._changed()

    def _gone(self, executor: Executor) -> None:
        self.executors.pop(executor.executor_id, None)
        for token in list(executor.tokens):
            self._lost(token, executor, "its executor went away")
        self._assign()

    def _lost(self, token: str, executor: Executor, why: str) -> None:
        executor.tokens.discard(token)
        task = self.tasks.get(token)
        if task is None or task.executor_id != executor.executor_id:
            return
        task.executor_id = None
        task.attempts += 1
        if task.attempts >= MAX_ATTEMPTS:
            self.tasks.pop(token)
            self._gave_up(task)
        else:
            _log.warning("A task is handed out again: %s", why, extra={"message_id": task.message_id})
            self._retried(task)


def _queued_work(orders: asyncio.Queue[appio_pb2.Order]) -> Iterable[appio_pb2.Order]:
    return [order for order in orders._queue if order.HasField("work")]  # type: ignore[attr-defined]
