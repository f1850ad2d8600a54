"""One process of the apps' interpreter, from which guests are forked (the other end of guest.py)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trellis_kit import fence, processes

from trellis_runner.frames import FrameSocket
from trellis_runner.logs import LogPump, Sink

Kind = Literal["server", "client"]

END_SECONDS: Final = 1.0
"""Between a guest's last byte and the news of its end."""

_GUEST = Path(__file__).with_name("guest.py")
_START_SECONDS = 120.0  # importing flwr from a cold disk
_OOM_SCORE = 500  # the guest goes before the runner when memory runs out
_NEWS = 1 << 18  # bytes of a packet
_NAMES = 500  # modules in one order


class GuestProblem(Exception):
    """No app can be hosted; the text says why and what to do."""


@dataclass(frozen=True)
class Start:
    """How to start an interpreter in `folder`, which its guests see of only what their work names; `memory` in bytes of
    address space, `cpus` a number of processors, `hidden` is out of its sight altogether. Not `fenced`: apps see
    what the runner's user sees."""

    python: Path
    folder: Path
    environment: Mapping[str, str]
    memory: int | None
    cpus: int | None
    hidden: Sequence[Path] = ()
    fenced: bool = True


def describe_end(code: int | None) -> str:
    """How a process ended, for people: `code` as subprocess gives it, negative for a signal, None when ended here."""
    if code is None:
        return "cut its connection to the executor, which ended it"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        hint = " (kill -9, or no memory left)" if -code == signal.SIGKILL else ""
        return f"was ended by {name}{hint}"
    return f"ended by itself with exit code {code}"


class Guest:
    """One forked process that hosts an app."""

    def __init__(self, zygote: Zygote, number: int, frames: FrameSocket, pump: LogPump) -> None:
        self.zygote = zygote
        self.number = number
        self.frames = frames
        self.pump = pump
        loop = asyncio.get_running_loop()
        self.forked: asyncio.Future[int | None] = loop.create_future()  # its process id; None when there is none
        self.ended: asyncio.Future[int | None] = loop.create_future()  # its exit code

    async def wait_end(self, timeout: float = END_SECONDS) -> bool:
        """Whether it ends in time."""
        await asyncio.wait({self.ended}, timeout=timeout)
        return self.ended.done()


class Zygote:
    """Started with `await Zygote.start(...)`; ended by `stop()`, or by itself: then `alive` is false."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, flwr_version: str) -> None:
        self.flwr_version = flwr_version
        self.guests: dict[int, Guest] = {}
        self.importing: set[str] = set()
        self.unsafe: set[str] = set()  # modules whose import started threads, which forks would miss
        self.alive = True
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._process = process
        self._control = control
        self._last = 0
        asyncio.get_running_loop().add_reader(control, self._on_news)

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, start: Start) -> Zygote:
        """A process that has imported flwr. GuestProblem when it cannot host apps."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        try:
            process = processes.spawn(
                (
                    str(start.python),
                    "-s",
                    "-u",
                    str(_GUEST),
                    str(theirs.fileno()),
                    fence.__file__ if start.fenced else "",
                ),
                env=start.environment,
                cwd=start.folder,
                stdin=subprocess.DEVNULL,
                new_session=True,
                pass_fds=(theirs.fileno(),),
                death_signal=signal.SIGKILL,
                memory=start.memory,
                cpus=start.cpus,
                oom_score_adj=_OOM_SCORE,
                hidden=start.hidden,
            )
        except OSError as error:
            mine.close()
            raise GuestProblem(
                f"The apps' interpreter {start.python} cannot be started ({error.strerror}); name another one with "
                "--guest-python."
            ) from error
        finally:
            theirs.close()
        try:
            return cls(process, mine, await _first_news(process, mine, start))
        except BaseException:
            mine.close()
            processes.kill_tree(process.pid)
            process.wait()
            raise

    def _on_news(self) -> None:
        while True:
            try:
                data = self._control.recv(_NEWS)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end()
                return
            self._take(json.loads(data))

    def _take(self, news: Mapping[str, Any]) -> None:
        match news["op"]:
            case "imported":
                self.importing.difference_update(news["modules"])
            case "unsafe":
                self.unsafe.add(news["module"])
            case "forked":
                _settle(self.guests[news["number"]].forked, news["pid"])
            case "ended":
                _settle(self.guests.pop(news["number"]).ended, news["code"])

    def _end(self) -> None:
        """It is gone, or will be now. Where it ended by itself, what was below it has fallen to this process."""
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        processes.kill_tree(self.pid)
        code = self._process.wait()
        for guest in self.guests.values():
            _settle(guest.forked, None)
            _settle(guest.ended, code)
        self.guests.clear()
        self.gone.set_result(None)

    def fork(self, kind: Kind, sink: Sink | None) -> Guest:
        """A fresh guest whose output goes to `sink`. GuestProblem."""
        mine, theirs = socket.socketpair()
        pump = LogPump(sink)
        descriptors = (theirs.fileno(), pump.add("OUT"), pump.add("ERR"))
        self._last += 1
        guest = Guest(self, self._last, FrameSocket(mine), pump)
        order = json.dumps({"op": "fork", "number": guest.number, "kind": kind}).encode()
        try:
            self._control.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))])
        except OSError as error:
            mine.close()
            raise GuestProblem(f"The apps' interpreter takes no work: {error}.") from error
        finally:
            theirs.close()
            os.close(descriptors[1])
            os.close(descriptors[2])
        self.guests[guest.number] = guest
        return guest

    def preimport(self, modules: Collection[str]) -> None:
        """Have it import modules, before it forks again."""
        names = list(modules)
        self.importing.update(names)
        for start in range(0, len(names), _NAMES):
            order = json.dumps({"op": "preimport", "modules": names[start : start + _NAMES]}).encode()
            try:
                self._control.send(order)
            except OSError:
                return  # it is gone or too busy: forks then import for themselves

    async def release(self, guest: Guest, patience: float) -> int | None:
        """End a guest and all it started, by force after `patience` seconds; its exit code, None when it was forced."""
        guest.frames.close()
        forced = False
        try:
            forced = not await guest.wait_end(patience)
        finally:
            if not guest.ended.done():
                # As soon as its process id is known: the zygote may be importing still.
                guest.forked.add_done_callback(_kill)
        if forced:
            await guest.wait_end()
        await guest.pump.finish()
        return None if forced else guest.ended.result()

    def stop(self) -> None:
        """End it and everything below it."""
        self._end()


def _kill(forked: asyncio.Future[int | None]) -> None:
    if (pid := forked.result()) is not None:
        processes.kill_tree(pid)


def _settle(future: asyncio.Future[int | None], result: int | None) -> None:
    if not future.done():
        future.set_result(result)


async def _first_news(process: subprocess.Popen[bytes], control: socket.socket, start: Start) -> str:
    """The flwr version of a new process. GuestProblem."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            data = await asyncio.wait_for(loop.sock_recv(control, _NEWS), _START_SECONDS)
            if not data:
                code = await asyncio.to_thread(process.wait)
                limit = "" if start.memory is None else f" (its memory is limited to {start.memory:,} bytes)"
                raise GuestProblem(f"The apps' interpreter {start.python} {describe_end(code)} at its start{limit}.")
            news = json.loads(data)
            if news["op"] == "ready":
                version: str = news["flwr"]
                return version
            if news["op"] == "unfit":
                raise GuestProblem(news["reason"])
    except TimeoutError:
        raise GuestProblem(f"{start.python} did not import flwr within {_START_SECONDS:g} s.") from None
