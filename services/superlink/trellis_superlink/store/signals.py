"""Topics that waiting calls sleep on. Within one process a topic is a set of asyncio listeners; across replicas the
same interface stands on PostgreSQL's LISTEN/NOTIFY (a topic is a channel's payload, so it is short text without data).

Topics: `node/<id>`, `run/<id>/replies`, `run/<id>/log`, `run/<id>/status`, `runs/pending`.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

PENDING_RUNS = "runs/pending"


def node_topic(node_id: int) -> str:
    return f"node/{node_id}"


def replies_topic(run_id: int) -> str:
    return f"run/{run_id}/replies"


def log_topic(run_id: int) -> str:
    return f"run/{run_id}/log"


def status_topic(run_id: int) -> str:
    return f"run/{run_id}/status"


class Listener:
    """Hears one topic from its creation on; a signal between two waits is not missed. Close it, or use `with`."""

    def __init__(self, signals: Signals, topic: str) -> None:
        self._signals = signals
        self._topic = topic
        self._raised = False
        self._waiting: asyncio.Future[bool] | None = None

    async def wait(self, timeout: float | None = None) -> bool:
        """True once the topic was raised since the last wait; False after `timeout` seconds without."""
        if not self._raised:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = None if timeout is None else loop.call_later(max(timeout, 0), self._wake, False)
            try:
                if not await self._waiting:
                    return False
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        self._raised = False
        return True

    def notify(self) -> None:
        self._raised = True
        self._wake(True)

    def _wake(self, raised: bool) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(raised)

    def close(self) -> None:
        self._signals.forget(self._topic, self)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Signals:
    """All topics of one process. Use from the event loop's thread only."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Listener]] = {}

    def listen(self, topic: str) -> Listener:
        listener = Listener(self, topic)
        self._listeners.setdefault(topic, set()).add(listener)
        return listener

    def forget(self, topic: str, listener: Listener) -> None:
        listeners = self._listeners.get(topic)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._listeners[topic]

    def notify(self, topic: str) -> None:
        for listener in tuple(self._listeners.get(topic, ())):
            listener.notify()
