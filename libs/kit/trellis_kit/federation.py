"""A whole federation as processes of this machine: one SuperLink, its ServerApp executor, SuperNodes and theirs.

Used by `trellis up`, the demo and the tests. Starting, signalling and looking are plain calls; waiting is async. Every
process starts a session of its own (a Ctrl-C in the terminal reaches only the starter, which ends the rest in order)
and gets SIGTERM from the kernel when its starter dies, however it dies. Call `start` from the thread that lives as long
as the federation shall: the kernel watches that thread.
"""

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from trellis_kit.processes import spawn

Isolation = Literal["process", "subprocess"]

_SERVER_PORTS = (10_000, 32_000)  # Linux gives 32768 and up to outgoing connections
_first_port = random.randrange(*_SERVER_PORTS)
_untried_ports = itertools.cycle((*range(_first_port, _SERVER_PORTS[1]), *range(_SERVER_PORTS[0], _first_port)))
_LOOK_SECONDS = 0.02  # between two looks at a process that was asked to end


class StartProblem(RuntimeError):
    """A role did not start or ended early; says which one, why, and how its log ends."""


def find_program(name: str) -> str:
    """The path of one of our programs: beside the running interpreter first, then on PATH.

    Raises StartProblem where it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise StartProblem(f"{name} is not installed: it is neither beside {sys.executable} nor on PATH")
    return found


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """So many different TCP ports that nobody listens on right now.

    They lie below those that the system gives to outgoing connections, one of which could take a port before the server
    does that it is meant for; for the same reason no port is given twice by one process until all were.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            one = socket.socket()
            sockets.append(one)
            try:
                one.bind((host, next(_untried_ports)))
            except OSError:
                sockets.pop().close()
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could bind this TCP port now (as servers do: with SO_REUSEADDR)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Addresses:
    """Where the roles of one federation listen, as host:port."""

    serverappio: str
    fleet: str
    control: str
    http: str
    clientappio: tuple[str, ...]  # one per SuperNode

    @classmethod
    def stock(cls, supernodes: int, host: str = "127.0.0.1") -> "Addresses":
        """The ports everybody knows: 9091, 9092, 9093, 8000, and from 9094 on one per SuperNode."""
        nodes = tuple(f"{host}:{9094 + index}" for index in range(supernodes))
        return cls(f"{host}:9091", f"{host}:9092", f"{host}:9093", f"{host}:8000", nodes)

    @classmethod
    def free(cls, supernodes: int, host: str = "127.0.0.1") -> "Addresses":
        """Ports that nobody uses now."""
        serverappio, fleet, control, http, *nodes = (f"{host}:{port}" for port in free_ports(4 + supernodes, host))
        return cls(serverappio, fleet, control, http, tuple(nodes))

    @property
    def all(self) -> tuple[str, ...]:
        return (self.serverappio, self.fleet, self.control, self.http, *self.clientappio)


class Role:
    """One process of a federation: can be started, ended, killed and started again with the same arguments."""

    def __init__(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log_path: Path) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.env = dict(env)
        self.cwd = cwd
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The code of the last life, negative for a signal; None while it runs or before its first start."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; its output is appended to `log_path`."""
        if self.running:
            return
        self.cwd.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = spawn(
                self.argv,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once (SIGKILL) and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self, grace: float = 10.0) -> int | None:
        """Ask it to end, and kill it when the grace period (seconds) is over. Returns its exit code."""
        self.send(signal.SIGTERM)
        return await self.wait_end(grace)

    async def wait_end(self, timeout: float) -> int | None:
        """Wait for the end of a process that was asked to; kill it when `timeout` seconds are over."""
        end = time.monotonic() + timeout
        while self.running and time.monotonic() < end:
            await asyncio.sleep(_LOOK_SECONDS)
        if self.running:
            self.kill()
        return self.exit_code

    def log(self) -> str:
        """Everything it wrote so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def last_words(self) -> str:
        """Why it ended, for people: how, and the warnings and errors among its last lines."""
        code = self.exit_code or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = [words for words in map(_words, self.log_tail().splitlines()) if words is not None]
        return f"{self.name} {how}:\n" + ("\n".join(said) or f"It does not say why; its log is {self.log_path}.")


def _words(line: str) -> str | None:
    """What a line of a service's JSON log warns of; other lines as they are, None for those below a warning."""
    try:
        entry = json.loads(line)
        level, message = entry["level"], entry["message"]
    except (ValueError, TypeError, KeyError):
        return line
    if level in ("DEBUG", "INFO"):
        return None
    return f"{message}\n{entry['exception']}" if "exception" in entry else str(message)


@dataclass(frozen=True)
class Plan:
    """What to start. The flags per role are added as they are; `--insecure` is among them unless replaced."""

    directory: Path  # databases, state and logs go below; the caller makes and removes it
    addresses: Addresses
    guest_python: Path | None = None  # the apps' interpreter; None leaves each role's default
    isolation: Isolation = "process"
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    superlink_flags: tuple[str, ...] = ("--insecure",)
    serverapp_flags: tuple[str, ...] = ("--insecure",)
    supernode_flags: tuple[str, ...] = ("--insecure",)
    clientapp_flags: tuple[str, ...] = ("--insecure",)
    partitions: int | None = None  # parts that the data is in; None: one per SuperNode of this plan

    @property
    def supernodes(self) -> int:
        return len(self.addresses.clientappio)

    @property
    def logs(self) -> Path:
        return self.directory / "logs"


class Federation:
    """The processes of one plan. Names: `superlink`, `serverapp`, `supernode-1` .. and `clientapp-1` .. n."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.roles: dict[str, Role] = {role.name: role for role in _roles(plan)}

    def __getitem__(self, name: str) -> Role:
        return self.roles[name]

    def start(self) -> None:
        """Start every role that does not run. They find each other by themselves, in any order."""
        for role in self.roles.values():
            role.start()

    async def ready(self, timeout: float = 30.0, *, root_certificates: Path | None = None) -> None:
        """Wait until the SuperLink serves. Raises StartProblem when a role has ended or the time (seconds) is over."""
        address = self.plan.addresses.control
        await self.until(lambda: serves(address, root_certificates), timeout, "the SuperLink serves")

    async def until(self, condition: "Callable[[], object]", timeout: float, what: str) -> None:
        """Wait until `condition` (plain or async) holds while every role lives. Raises StartProblem otherwise."""
        end = time.monotonic() + timeout
        while True:
            self.check()
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            if time.monotonic() > end:
                raise StartProblem(f"Waited {timeout:g} s until {what}, in vain.\n{self.logs_for_people()}")
            await asyncio.sleep(0.1)

    def check(self) -> None:
        """Raise StartProblem when a role has ended by itself."""
        for role in self.roles.values():
            if role.exit_code is not None:
                raise StartProblem(role.last_words())

    def logs_for_people(self, lines: int = 15) -> str:
        """The end of every role's log under its name."""
        return "\n".join(f"--- {role.name} ---\n{role.log_tail(lines)}" for role in self.roles.values())

    async def stop(self, grace: float = 10.0) -> None:
        """End everything: executors and SuperNodes first, so that they can still say goodbye, then the SuperLink."""
        *others, superlink = sorted(self.roles.values(), key=lambda role: role.name == "superlink")
        await asyncio.gather(*(role.stop(grace) for role in others))
        await superlink.stop(grace)

    def kill(self) -> None:
        """End everything at once."""
        for role in self.roles.values():
            role.kill()


async def serves(address: str, root_certificates: Path | None = None) -> bool:
    """Whether a gRPC server at host:port answers the standard health check with SERVING."""
    if root_certificates is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        credentials = grpc.ssl_channel_credentials(root_certificates.read_bytes())
        channel = grpc.aio.secure_channel(address, credentials)
    async with channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _roles(plan: Plan) -> Iterator[Role]:
    at = plan.addresses
    guest = () if plan.guest_python is None else ("--guest-python", str(plan.guest_python))
    # In subprocess isolation the SuperLink and the SuperNodes start their executors themselves.
    host_guest = guest if plan.isolation == "subprocess" else ()

    def role(name: str, program: str, *flags: str) -> Role:
        argv = (find_program(program), *flags)
        cwd = plan.directory / name
        return Role(name, argv, env=plan.env, cwd=cwd, log_path=plan.logs / f"{name}.log")

    def superlink() -> Iterator[str]:
        yield from ("--serverappio-api-address", at.serverappio, "--fleet-api-address", at.fleet)
        http_host, _, http_port = at.http.rpartition(":")
        yield from ("--control-api-address", at.control, "--host", http_host, "--port", http_port)
        yield from ("--database", str(plan.directory / "superlink" / "superlink.db"))
        yield from ("--storage-dir", str(plan.directory / "superlink" / "objects"))
        yield from ("--isolation", plan.isolation, *host_guest, *plan.superlink_flags)

    def supernode(index: int, clientappio: str) -> Iterator[str]:
        yield from ("--superlink", at.fleet, "--clientappio-api-address", clientappio)
        yield from ("--node-config", f"partition-id={index} num-partitions={plan.partitions or plan.supernodes}")
        yield from ("--state-dir", str(plan.directory / f"supernode-{index + 1}" / "state"))
        yield from ("--isolation", plan.isolation, *host_guest, *plan.supernode_flags)

    yield role("superlink", "trellis-superlink", *superlink())
    hidden = ("--app-hidden", str(plan.directory))
    if plan.isolation == "process":
        address = ("--serverappio-api-address", at.serverappio)
        yield role("serverapp", "trellis-serverapp", *address, *guest, *hidden, *plan.serverapp_flags)
    for index, clientappio in enumerate(at.clientappio):
        yield role(f"supernode-{index + 1}", "trellis-supernode", *supernode(index, clientappio))
        if plan.isolation == "process":
            address = ("--clientappio-api-address", clientappio)
            yield role(f"clientapp-{index + 1}", "trellis-clientapp", *address, *guest, *hidden, *plan.clientapp_flags)
