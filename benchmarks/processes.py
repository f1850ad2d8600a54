"""Processes whose lines are stamped with the time they came, and whose memory and CPU are read from /proc."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class BenchmarkError(RuntimeError):
    """A benchmark could not be run; the message says which process, and shows the end of its log."""


@dataclass(frozen=True)
class Line:
    """One line of output and the time (seconds since the epoch) at which it came."""

    at: float
    text: str


@dataclass
class Process:
    """A running program of a federation."""

    name: str
    popen: "subprocess.Popen[str]"
    lines: list[Line] = field(default_factory=list)
    reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.popen.pid

    def read(self) -> None:
        """Collect lines until the program closes its output."""
        assert self.popen.stdout is not None
        for text in self.popen.stdout:
            self.lines.append(Line(time.time(), text.rstrip("\n")))

    def tail(self, count: int = 25) -> str:
        """The last lines, for error messages."""
        return "\n".join(f"    {line.text}" for line in self.lines[-count:])

    def finish(self, timeout: float) -> list[Line]:
        """Wait for the program to end by itself; BenchmarkError when it does not, or not well."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self.name} did not end within {timeout:.0f} s:\n{self.tail()}") from None
        if self.reader is not None:
            self.reader.join(5)
        if code != 0:
            raise BenchmarkError(f"{self.name} ended with {code}:\n{self.tail()}")
        return self.lines

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the program and what it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass  # it has ended by itself

    def stop(self, grace: float = 10.0) -> None:
        """End the program and what it started: asked first, made to after `grace` seconds."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(grace)
        except subprocess.TimeoutExpired:
            pass  # the kill below ends it
        self.signal_group(signal.SIGKILL)
        self.popen.wait()


def start(name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> Process:
    """Start a program in a session of its own, both outputs read line by line."""
    popen = subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    process = Process(name, popen)
    process.reader = threading.Thread(target=process.read, name=f"log of {name}", daemon=True)
    process.reader.start()
    return process


def wait_until(what: str, ready: Callable[[], bool], watched: Sequence[Process], timeout: float = 60.0) -> None:
    """Wait for a condition; BenchmarkError when time runs out or a watched process ends before."""
    deadline = time.monotonic() + timeout
    while not ready():
        for process in watched:
            if process.popen.poll() is not None:
                raise BenchmarkError(f"{process.name} ended before {what}:\n{process.tail()}")
        if time.monotonic() > deadline:
            tails = "\n".join(f"  {process.name}:\n{process.tail()}" for process in watched)
            raise BenchmarkError(f"Not within {timeout:.0f} s: {what}\n{tails}")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody answers on this port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _memory(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    if match is None:
        raise BenchmarkError(f"/proc/{pid}/status has no {name}")
    return int(match[1]) * 1024


def resident(pid: int) -> int:
    """Bytes in memory now."""
    return _memory(pid, "VmRSS")


def forget_peak(pid: int) -> None:
    """Let the kernel's record of the highest memory start again from now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """The most bytes in memory since `forget_peak`."""
    return _memory(pid, "VmHWM")


def cpu_seconds_of_session(leader: int) -> float:
    """Processor time of a program and of all it started, as far as their parents have waited for those that ended."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else []
        except OSError:
            continue  # it has ended
        if fields and int(fields[3]) == leader:
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


def cpu_seconds(pid: int) -> float:
    """Processor time that the process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
