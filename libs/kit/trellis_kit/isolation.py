"""Who runs the executors of a SuperLink or SuperNode: somebody else (process), or the service itself (subprocess)."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from trellis_kit import stderr
from trellis_kit.processes import spawn
from trellis_kit.retry import Backoff
from trellis_kit.settings import Settings, variables

_log = logging.getLogger(__name__)

ABSENT_SECONDS = 10.0
_STEADY_SECONDS = 30.0  # an executor that lived this long is not in a crash loop


class Isolation(ABC):
    """Started with the service and stopped with it."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to provide executors."""

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """End what was started, within `grace` seconds."""

    @abstractmethod
    def work_waits(self, waiting: bool) -> None:
        """The service tells whether work waits that no executor is there for."""


class ProcessIsolation(Isolation):
    """Executors are processes or containers of their own. Says how to start one when work waits for 10 s."""

    def __init__(self, hint: str, *, absent_after: float = ABSENT_SECONDS) -> None:
        self._hint = hint
        self._absent_after = absent_after
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self, grace: float) -> None:
        """Nothing to end."""
        self.work_waits(False)

    def work_waits(self, waiting: bool) -> None:
        if waiting and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._absent_after, self._tell)
        elif not waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        _log.warning("Work waits for %g s and no executor is connected. %s", self._absent_after, self._hint)


class SubprocessIsolation(Isolation):
    """The service starts its executor itself and starts it again whenever it ends.

    `settings` is the class of the service's own settings: what its variables say is meant for the service, which hands
    on in `argv` what the executor needs. Others, such as TRELLIS_GUEST_MEMORY, reach the executor.
    """

    def __init__(self, argv: Callable[[], Sequence[str]], settings: type[Settings]) -> None:
        self._argv = argv
        self._own = variables(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # Started from the loop's thread, which lives as long as the service: the kernel watches that thread.
        self._process = self._spawn()
        self._task = asyncio.create_task(self._keep(), name="executor")

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in self._own}
        return spawn(
            self._argv(), env=environment, stdin=subprocess.DEVNULL, stderr=stderr.descriptor(), new_session=True
        )

    async def _keep(self) -> None:
        backoff = Backoff(initial=0.5, cap=20.0)
        while True:
            began = time.monotonic()
            process = self._process
            assert process is not None
            code = await asyncio.to_thread(process.wait)
            if time.monotonic() - began > _STEADY_SECONDS:
                backoff.reset()
            _log.error("The executor ended with exit code %d; it is started again", code)
            await backoff.wait()
            while not self._started():
                await backoff.wait()

    def _started(self) -> bool:
        try:
            self._process = self._spawn()
        except OSError as error:  # no memory or processes left, or the program is being replaced
            _log.error("The executor cannot be started, trying again: %s", error)
            return False
        return True

    async def stop(self, grace: float) -> None:
        if self._task is not None:
            self._task.cancel()
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(asyncio.to_thread(process.wait), grace)
        except TimeoutError:
            process.kill()
            await asyncio.to_thread(process.wait)

    def work_waits(self, waiting: bool) -> None:
        """The executor is on its way; its end is told by the loop that keeps it."""
