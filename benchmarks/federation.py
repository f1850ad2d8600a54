"""Federations as processes on this machine: a SuperLink and SuperNodes, each from a stock release or from Trellis."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trellis_testing.venvs import StockFlwr

from benchmarks.processes import Line, Process, free_port, listens, start, wait_until

TRELLIS = "trellis"
GUEST = "1.41.0"  # the flwr that apps run on, on Trellis
HTTP_RUNTIME, HTTP_CONTROL, HTTP_FLEET = (1, 35), (1, 37), (1, 40)  # since when the stock surfaces are on the HTTP port


def minor(release: str) -> tuple[int, int]:
    """(1, 24) of "1.24.0"."""
    major, minor_, *_ = release.split(".")
    return int(major), int(minor_)


@dataclass(frozen=True)
class Setup:
    """Which release each role is of: "trellis" or a stock version such as "1.33.0"."""

    superlink: str
    nodes: str
    count: int = 2
    superlink_program: tuple[str, ...] = ()  # in place of the release's own

    @property
    def label(self) -> str:
        """How tables name it."""
        if self.superlink == self.nodes:
            return self.superlink
        return f"{self.nodes} nodes on {self.superlink}"


@dataclass
class Federation:
    """A running federation."""

    setup: Setup
    folder: Path
    superlink: Process
    fleet: int  # ports of this machine
    control: int
    appio: int
    nodes: list[Process] = field(default_factory=list)
    node_ports: list[int] = field(default_factory=list)
    others: list[Process] = field(default_factory=list)

    @property
    def processes(self) -> list[Process]:
        """All of them, those that depend on others first."""
        return [*self.others, *self.nodes, self.superlink]

    def submit(
        self, app: Path, config: dict[str, str | int | float | bool], timeout: float
    ) -> tuple[float, list[Line]]:
        """Run an app to its end, by the command line of the SuperLink's release: (when submitted, lines of its log)."""
        release = self.setup.superlink
        env = _environment(self.folder / "cli", None if release == TRELLIS else _venv(release))
        copy = self.folder / "app"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(app, copy)
        connection = f'address = "127.0.0.1:{self.control}"\ninsecure = true\n'
        if release != TRELLIS and minor(release) <= (1, 25):
            with (copy / "pyproject.toml").open("a") as file:
                file.write(f"\n[tool.flwr.federations]\ndefault = 'here'\n[tool.flwr.federations.here]\n{connection}")
        else:
            home = Path(env["FLWR_HOME"])
            home.mkdir(parents=True, exist_ok=True)
            (home / "config.toml").write_text(f"[superlink]\ndefault = 'here'\n[superlink.here]\n{connection}")
        program = _program("trellis", None) if release == TRELLIS else _program("flwr", release)
        argv = [program, "run", str(copy), "here", "--stream", "--run-config", _as_toml(config)]
        submitted = time.time()
        cli = start("flwr run", argv, env, self.folder)
        try:
            return submitted, cli.finish(timeout)
        except RuntimeError as error:
            tails = "\n".join(f"  {process.name}:\n{process.tail()}" for process in self.processes)
            raise RuntimeError(f"{self.setup.label}: {error}\n{tails}") from error
        finally:
            cli.stop()


def _as_toml(config: dict[str, str | int | float | bool]) -> str:
    def scalar(value: str | int | float | bool) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return f'"{value}"' if isinstance(value, str) else str(value)

    return " ".join(f"{key}={scalar(value)}" for key, value in config.items())


def _venv(release: str) -> Path:
    return StockFlwr(release).ensure().path


def _program(name: str, release: str | None) -> str:
    folder = Path(sys.executable).parent if release is None else _venv(release) / "bin"
    return str(folder / name)


def _environment(home: Path, venv: Path | None) -> dict[str, str]:
    """A clean environment: no proxy, no update check, the release's own programs first (stock starts them by name)."""
    folder = Path(sys.executable).parent if venv is None else venv / "bin"
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.pathsep.join([str(folder), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "FLWR_HOME": str(home / ".flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
        "PYTHONPATH": str(Path(__file__).parent.parent) if venv is None else "",  # benchmarks.unsigned
    }


@contextmanager
def running(setup: Setup) -> Iterator[Federation]:
    """A federation that is up, all nodes registered; ended and its files removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="trellis-benchmark-"))
    started: list[Process] = []
    try:
        federation = _superlink(setup, folder, started)
        for number in range(setup.count):
            _node(federation, number, started)
        yield federation
    finally:
        for process in reversed(started):
            process.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _launch(
    name: str, release: str, program: Sequence[str], options: Sequence[str], folder: Path, started: list[Process]
) -> Process:
    venv = None if release == TRELLIS else _venv(release)
    home = folder / name
    process = start(name, [*program, *options], _environment(home, venv), home)
    started.append(process)
    return process


def _superlink(setup: Setup, folder: Path, started: list[Process]) -> Federation:
    release = setup.superlink
    fleet, control, appio = free_port(), free_port(), free_port()
    database = str(folder / "superlink" / "state.db")
    options = ["--insecure", "--database", database]
    if release == TRELLIS:
        http = free_port()
        options += _addresses(appio, fleet, control)
        options += ["--port", str(http), "--isolation", "process"]
        options += ["--storage-dir", str(folder / "superlink" / "objects")]
        ports = [fleet, control, appio, http]
        if setup.nodes != TRELLIS and minor(setup.nodes) >= HTTP_FLEET:
            fleet = http
        program = [_program("trellis-superlink", None)]
    else:
        version = minor(release)
        options += ["--isolation", "subprocess"]
        if version >= (1, 29):
            options += ["--disable-runtime-dependency-installation"]
        if version < (1, 33):
            options += ["--storage-dir", str(folder / "superlink" / "objects")] if version < (1, 26) else []
        if version < HTTP_RUNTIME:
            options += _addresses(appio, fleet, control, control_name="control" if version >= (1, 21) else "exec")
        else:
            options += ["--port", str(appio)]
            fleet = appio if version >= HTTP_FLEET else fleet
            control = appio if version >= HTTP_CONTROL else control
            options += ["--fleet-api-address", f"127.0.0.1:{fleet}"] if version < HTTP_FLEET else []
            options += ["--control-api-address", f"127.0.0.1:{control}"] if version < HTTP_CONTROL else []
        ports = sorted({fleet, control, appio})
        program = [_program("flower-superlink", release)]
    process = _launch("superlink", release, setup.superlink_program or program, options, folder, started)
    federation = Federation(setup, folder, process, fleet, control, appio)
    wait_until("the SuperLink listens", lambda: all(map(listens, ports)), [process])
    if release == TRELLIS:
        flags = ["--insecure", "--serverappio-api-address", f"127.0.0.1:{appio}", "--guest-python", _guest_python()]
        executor = _launch("serverapp", TRELLIS, [_program("trellis-serverapp", None)], flags, folder, started)
        federation.others.append(executor)
    return federation


def _node(federation: Federation, number: int, started: list[Process]) -> None:
    release, count = federation.setup.nodes, federation.setup.count
    port = free_port()
    options = ["--insecure", "--superlink", f"127.0.0.1:{federation.fleet}"]
    options += ["--node-config", f"partition-id={number} num-partitions={count}"]
    name = f"supernode-{number}"
    if release == TRELLIS:
        options += ["--clientappio-api-address", f"127.0.0.1:{port}", "--isolation", "process"]
        options += ["--state-dir", str(federation.folder / name / "state")]
        node = _launch(name, TRELLIS, [_program("trellis-supernode", None)], options, federation.folder, started)
        wait_until("the SuperNode listens", lambda: listens(port), [node])
        flags = ["--insecure", "--clientappio-api-address", f"127.0.0.1:{port}", "--guest-python", _guest_python()]
        program = [_program("trellis-clientapp", None)]
        executor = _launch(f"clientapp-{number}", TRELLIS, program, flags, federation.folder, started)
        federation.others.append(executor)
    else:
        new = minor(release) >= HTTP_RUNTIME
        options += ["--port", str(port)] if new else ["--clientappio-api-address", f"127.0.0.1:{port}"]
        options += ["--isolation", "subprocess"]
        node = _launch(name, release, [_program("flower-supernode", release)], options, federation.folder, started)
        wait_until("the SuperNode listens", lambda: listens(port), [node])
    federation.nodes.append(node)
    federation.node_ports.append(port)


def _addresses(appio: int, fleet: int, control: int, *, control_name: str = "control") -> list[str]:
    options = []
    for flag, port in (("serverappio", appio), ("fleet", fleet), (control_name, control)):
        options += [f"--{flag}-api-address", f"127.0.0.1:{port}"]
    return options


def _guest_python() -> str:
    return str(_venv(GUEST) / "bin" / "python")
