"""Who runs the executors: one small interface, an implementation per isolation mode."""

import asyncio
import logging
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from trellis_kit import processes
from trellis_kit.retry import Backoff

_log = logging.getLogger(__name__)

# Work that waits this long without an executor in sight is worth a word to the operator.
PATIENCE = 10.0
_REMIND = 300.0
_LOOK = 1.0
# An executor that lived this long was healthy: its next start does not wait.
_HEALTHY = 30.0


class Isolation(ABC):
    """Provides executors for the work of one service."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to provide executors; returns at once."""

    @abstractmethod
    async def stop(self, *, grace: float) -> None:
        """End what was started, within `grace` seconds."""


class ProcessIsolation(Isolation):
    """Executors come from outside (a container, a service of their own); says so when none comes.

    `waiting` gives the seconds that work has been waiting while no executor attends, None when that is not the case.
    """

    def __init__(self, waiting: Callable[[], float | None], *, how_to_start: str) -> None:
        self._waiting = waiting
        self._how_to_start = how_to_start
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="executor-watch")

    async def stop(self, *, grace: float) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _watch(self) -> None:
        while True:
            seconds = self._waiting()
            if seconds is not None and seconds >= PATIENCE:
                _log.warning(
                    "Work has been waiting for %.0f s and no executor is here. %s", seconds, self._how_to_start
                )
                await asyncio.sleep(_REMIND)
            else:
                await asyncio.sleep(_LOOK if seconds is None else max(0.05, min(_LOOK, PATIENCE - seconds)))


class SubprocessIsolation(Isolation):
    """Runs one executor program as a child and starts it again whenever it ends."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        self._argv = tuple(argv)
        self._env = env
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="executor")

    async def stop(self, *, grace: float) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        if self._process is not None and self._process.returncode is None:
            await processes.end_tree(self._process.pid, grace=grace)
            await self._process.wait()

    async def _run(self) -> None:
        backoff = Backoff(initial=0.5)
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                self._process = await processes.spawn(self._argv, env=self._env, death_signal=signal.SIGTERM)
            except OSError as error:
                _log.error("Cannot start the executor (%s): %s", shlex.join(self._argv), error)
            else:
                _log.info("Started the executor", extra={"executor_pid": self._process.pid})
                status = await self._process.wait()
                _log.warning("The executor ended with %s; starting it again", _ending(status))
                if loop.time() - started > _HEALTHY:
                    backoff.reset()
            await backoff.sleep()


def _ending(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
