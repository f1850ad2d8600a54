"""The app's interpreter: one zygote process, and a guest forked from it for each piece of work."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trellis_kit import processes
from trellis_kit.lifecycle import Fatal

from trellis_runner.frames import FrameSocket
from trellis_runner.logs import LogPump, Sink

_log = logging.getLogger(__name__)

Kind = Literal["server", "client"]

_GUEST = Path(__file__).with_name("guest.py")
_START_SECONDS = 120.0  # importing flwr from a cold disk
_END_SECONDS = 1.0  # between a guest's last byte and the news of its end
_OOM_SCORE = 500  # the guest goes before the runner when memory runs out

# Passed on to guests: where programs and libraries are, language, and how many threads numeric libraries use.
_ENVIRONMENT = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_ENVIRONMENT_PREFIXES = ("LC_", "OPENBLAS_", "OMP_", "MKL_", "NUMEXPR_", "CUDA_", "NVIDIA_")


class GuestProblem(Exception):
    """No app can be hosted; the text says why and what to do."""


@dataclass(frozen=True)
class GuestSettings:
    """What an operator decides about guests. `memory` in bytes of address space, `cpus` a number of processors."""

    python: Path
    work_root: Path
    app_env: Sequence[str] = ()
    app_secrets: Sequence[Path] = ()
    memory: int | None = None
    cpus: int | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def environment(self) -> dict[str, str]:
        """Everything a guest finds in its environment: nothing of Trellis's, and what the operator named."""
        found = {
            name: value
            for name, value in self.environ.items()
            if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
        }
        found.update({name: self.environ[name] for name in self.app_env if name in self.environ})
        for path in self.app_secrets:
            found[f"APP_SECRET_{path.stem.upper().replace('-', '_').replace('.', '_')}"] = str(path.absolute())
        home = str(self.work_root)
        return {
            **found,
            "HOME": home,
            "FLWR_HOME": f"{home}/.flwr",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def describe_end(code: int | None) -> str:
    """How a process ended, for people: `code` as subprocess gives it, negative for a signal."""
    if code is None:
        return "vanished"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was ended by {name}{hint}"
    return f"ended by itself with exit code {code}"


class Guest:
    """One forked process that hosts an app."""

    def __init__(self, number: int, frames: FrameSocket, pump: LogPump) -> None:
        self.number = number
        self.frames = frames
        self.pump = pump
        self.pid: int | None = None
        loop = asyncio.get_running_loop()
        self.forked: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int | None] = loop.create_future()

    async def wait_end(self, timeout: float = _END_SECONDS) -> int | None:
        """Its exit code (negative: signal); None when it does not end in time or nobody knows."""
        try:
            return await asyncio.wait_for(asyncio.shield(self.ended), timeout)
        except TimeoutError:
            return None


class GuestHost:
    """Owns the zygote. `start()`, then `fork()` for each piece of work and `release()` when it is done."""

    def __init__(self, settings: GuestSettings) -> None:
        self._settings = settings
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._guests: dict[int, Guest] = {}
        self._last = 0
        self._known: set[str] = set()
        self._starting = asyncio.Lock()
        self.flwr_version = ""

    async def start(self) -> None:
        """Start the interpreter and import flwr. GuestProblem when it cannot host apps."""
        self._settings.work_root.mkdir(parents=True, exist_ok=True)
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        try:
            self._zygote = processes.spawn(
                (str(self._settings.python), "-u", str(_GUEST), str(theirs.fileno())),
                env=self._settings.environment(),
                cwd=self._settings.work_root,
                stdin=subprocess.DEVNULL,
                new_session=True,
                pass_fds=(theirs.fileno(),),
                death_signal=signal.SIGKILL,
                memory=self._settings.memory,
                cpus=self._settings.cpus,
            )
        except OSError as error:
            raise GuestProblem(
                f"The apps' interpreter {self._settings.python} cannot be started ({error.strerror}); name another one "
                "with --guest-python."
            ) from error
        finally:
            theirs.close()
        processes.set_oom_score_adj(_OOM_SCORE, self._zygote.pid)
        loop = asyncio.get_running_loop()
        try:
            data = await asyncio.wait_for(loop.sock_recv(mine, 1 << 16), _START_SECONDS)
        except TimeoutError:
            self._zygote.kill()
            raise GuestProblem(f"{self._settings.python} did not import flwr within {_START_SECONDS:g} s.") from None
        if not data:
            code = await asyncio.to_thread(self._zygote.wait)
            raise GuestProblem(f"The apps' interpreter {self._settings.python} {describe_end(code)} at its start.")
        news = json.loads(data)
        if news["op"] != "ready":
            raise GuestProblem(news["reason"])
        self.flwr_version = news["flwr"]
        self._control = mine
        self._known = set()
        loop.add_reader(mine, self._on_news, mine)
        _log.info("Apps are hosted by %s with flwr %s", self._settings.python, self.flwr_version)

    async def start_or_fatal(self) -> None:
        """Start as a service does: what keeps apps from being hosted ends it with one sentence."""
        try:
            await self.start()
        except GuestProblem as problem:
            raise Fatal(str(problem)) from problem

    def _on_news(self, control: socket.socket) -> None:
        while True:
            try:
                data = control.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._zygote_gone(control)
                return
            news = json.loads(data)
            guest = self._guests.get(news["number"])
            if guest is None:
                continue
            if news["op"] == "forked":
                guest.pid = news["pid"]
                if not guest.forked.done():
                    guest.forked.set_result(news["pid"])
            elif not guest.ended.done():
                guest.ended.set_result(news["code"])

    def _zygote_gone(self, control: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(control)
        control.close()
        if self._control is control:
            self._control = None
        code = self._zygote.wait() if self._zygote is not None else None
        for guest in self._guests.values():
            if not guest.forked.done():
                guest.forked.set_exception(GuestProblem(f"The apps' interpreter {describe_end(code)}."))
                guest.forked.exception()
            if not guest.ended.done():
                guest.ended.set_result(code)

    async def fork(self, kind: Kind, sink: Sink) -> Guest:
        """A fresh guest whose output goes to `sink`. GuestProblem."""
        async with self._starting:
            if self._control is None:
                await self.start()
        control = self._control
        assert control is not None
        mine, theirs = socket.socketpair()
        pump = LogPump(sink)
        descriptors = (theirs.fileno(), pump.add("OUT"), pump.add("ERR"))
        self._last += 1
        guest = Guest(self._last, FrameSocket(mine), pump)
        self._guests[guest.number] = guest
        order = json.dumps({"op": "fork", "number": guest.number, "kind": kind}).encode()
        try:
            control.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))])
            await guest.forked
        except OSError as error:
            self._guests.pop(guest.number)
            raise GuestProblem(f"The apps' interpreter takes no work: {error}.") from error
        finally:
            theirs.close()
            os.close(descriptors[1])
            os.close(descriptors[2])
        return guest

    def preimport(self, modules: Sequence[str]) -> None:
        """Have later guests begin with these modules imported: what an app turned out to need from outside its FAB."""
        new = [name for name in modules if name not in self._known]
        if not new or self._control is None:
            return
        self._known.update(new)
        for start in range(0, len(new), 500):
            order = json.dumps({"op": "preimport", "modules": new[start : start + 500]}).encode()
            self._control.send(order)

    async def release(self, guest: Guest, *, kill: bool = False) -> int | None:
        """End a guest and all it started; returns its exit code. With `kill` it is not given a moment to end itself."""
        guest.frames.close()
        if not kill:
            await guest.wait_end()
        if not guest.ended.done() and guest.pid is not None:
            processes.kill_tree(guest.pid)
        code = await guest.wait_end()
        self._guests.pop(guest.number, None)
        if not self._guests and self._zygote is not None:
            # Orphans of guests have become our children; while another guest runs they may be its own.
            processes.kill_descendants(frozenset({self._zygote.pid}))
        await guest.pump.finish()
        return code

    async def stop(self) -> None:
        """End the zygote and everything below it."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._zygote is not None:
            processes.kill_tree(self._zygote.pid)
            await asyncio.to_thread(self._zygote.wait)
        processes.kill_descendants()


def guest_work(**values: Any) -> dict[str, Any]:
    """The header that gives a guest its work; flwr's task ids are only needed to be set (Flower 1.38 on)."""
    return {"op": "work", "task_id": values["run_id"], **values}
