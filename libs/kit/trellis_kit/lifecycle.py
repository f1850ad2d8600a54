"""The life of a service's process: from its start to its orderly end on SIGTERM or SIGINT."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2  # a setting or a combination of settings is wrong
EXIT_GRACE = 3  # the grace period was over before everything had ended

# What a cancelled service still gets for its clean-up before the process ends without it.
_CANCEL_SECONDS = 5.0


class Fatal(Exception):
    """Something that only the operator can mend; ends the service with one log line and without a traceback."""

    def __init__(self, sentence: str, *, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Stop:
    """The order to stop: asked for once, waited for by everything that runs until then."""

    def __init__(self, grace: float) -> None:
        self._event = asyncio.Event()
        self._grace = grace
        self._deadline: float | None = None

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        """Ask the service to stop; from now on the grace period runs."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._grace
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    def remaining(self) -> float:
        """Seconds of the grace period that are left; all of it before a stop is requested."""
        if self._deadline is None:
            return self._grace
        return max(0.0, self._deadline - asyncio.get_running_loop().time())


def run_service(main: Callable[[Stop], Awaitable[int | None]], *, grace: float) -> int:
    """Run `main` in a new event loop and return the process's exit code.

    The first SIGTERM or SIGINT sets the Stop that `main` was given; `main` then finishes or hands back its work and
    returns. After `grace` seconds it is cancelled (exit code 3). A second signal ends the process at once. What `main`
    left running, threads of the loop too, has 5 s after its end; then the process ends without it (exit code 3).
    """
    last_resort = threading.Timer(_CANCEL_SECONDS, _leave)
    last_resort.daemon = True
    try:
        return asyncio.run(_supervise(main, grace, last_resort))
    finally:
        last_resort.cancel()


def _leave() -> None:
    _log.error("The service does not end; leaving it")
    os._exit(EXIT_GRACE)


async def _supervise(main: Callable[[Stop], Awaitable[int | None]], grace: float, last_resort: threading.Timer) -> int:
    stop = Stop(grace)
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.requested:
            os._exit(128 + number)
        _log.info("Stopping within %g s (%s); a second signal ends at once", grace, number.name)
        stop.request()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

    async def run() -> int | None:
        return await main(stop)

    task = asyncio.create_task(run(), name="service")
    watch = asyncio.create_task(_overrun(stop, task), name="grace")
    try:
        result = await task
    except Fatal as problem:
        _log.error("%s", problem)
        return problem.exit_code
    except asyncio.CancelledError:
        if not stop.requested:
            raise
        _log.error("Not everything had ended after the grace period of %g s", grace)
        return EXIT_GRACE
    except Exception:
        _log.exception("The service failed")
        return EXIT_FAILED
    else:
        return EXIT_OK if result is None else result
    finally:
        watch.cancel()
        last_resort.start()


async def _overrun(stop: Stop, task: "asyncio.Task[int | None]") -> None:
    await stop.wait()
    await asyncio.sleep(stop.remaining())
    task.cancel()
    await asyncio.sleep(_CANCEL_SECONDS)
    _leave()
