"""What the tests do with `docker compose` and `docker`: projects of their own names and ports, and their removal."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from commands import CommandFailed, command
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID
from trellis_kit.federation import free_ports

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
LABEL = "com.docker.compose.project"
PROXY = "http://127.0.0.1:9"
_PREFIX = "trellis-test-"


def docker(*argv: str, check: bool = True, timeout: float = 240) -> str:
    return command("docker", *argv, check=check, timeout=timeout)


def inspect(thing: str) -> Any:
    """What the engine says about a container or an image."""
    return json.loads(docker("inspect", thing))[0]


def image(name: str) -> str:
    """An image of `make images`; the session's fixture has built it."""
    return f"{os.environ.get('IMAGE_PREFIX', 'trellis/')}{name}:latest"


@dataclass(frozen=True)
class Running:
    """A command that was started."""

    process: subprocess.Popen[bytes]
    output: IO[str]

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def log(self) -> str:
        """What it has written so far."""
        return os.pread(self.output.fileno(), 1_000_000, 0).decode(errors="replace")


@dataclass(frozen=True)
class Project:
    """A compose project: some files, under a name of its own, with what the files read from the environment."""

    files: Sequence[Path]
    env: Mapping[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:6]}")

    def words(self, *argv: str) -> list[str]:
        """A compose command about this project."""
        return [
            "docker",
            "compose",
            "-p",
            self.name,
            *(word for file in self.files for word in ("-f", str(file))),
            *argv,
        ]

    def compose(self, *argv: str, timeout: float = 300, check: bool = True) -> str:
        return command(*self.words(*argv), env=self.env, timeout=timeout, check=check)

    def up(self) -> None:
        """Start everything and wait until it is well."""
        try:
            self.compose("up", "--wait", "--wait-timeout", "200")
        except CommandFailed as failed:
            raise CommandFailed(f"{failed}\n{self.compose('logs', '--tail=30', check=False)}") from None

    def containers(self) -> dict[str, str]:
        """Service to container, of those that run."""
        listed = docker("ps", "-q", "--filter", f"label={LABEL}={self.name}").split()
        return {inspect(one)["Config"]["Labels"]["com.docker.compose.service"]: one for one in listed}

    def python(self, service: str, code: str) -> str:
        """What Python code prints inside a service's container, as its user."""
        return self.compose("exec", "-T", service, "/opt/trellis/bin/python", "-I", "-c", code)

    def cli(self, *argv: str, app: Path, check: bool = True) -> str:
        """A command in the cli service, with the app's folder mounted."""
        files = replace_env(self, APP=str(app))
        return files.compose("run", "--rm", "-T", "cli", *argv, check=check)

    @contextmanager
    def cli_in_background(self, *argv: str, app: Path) -> Iterator[Running]:
        """The same, under way."""
        words = self.words("run", "--rm", "-T", "cli", *argv)
        environment = {**os.environ, **self.env, "APP": str(app)}
        with TemporaryFile("w+") as output:
            process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                yield Running(process, output)
            finally:
                process.terminate()  # if it has not ended; the command line in the container is told, too
                process.wait(60)

    def left(self) -> str:
        """Every container, network and volume of the project."""
        label = f"label={LABEL}={self.name}"
        return "".join(
            docker(*words, "-q", "--filter", label) for words in (("ps", "-a"), ("network", "ls"), ("volume", "ls"))
        )


def replace_env(project: Project, **more: str) -> Project:
    return Project(project.files, {**project.env, **more}, project.name)


def ports() -> dict[str, str]:
    """Published ports that nobody uses, for the compose files."""
    names = ("FLEET_PORT", "CONTROL_PORT", "HTTP_PORT")
    return dict(zip(names, map(str, free_ports(len(names), "0.0.0.0")), strict=True))


def behind_a_proxy(folder: Path) -> dict[str, str]:
    """The environment of somebody whose Docker tells every container of a proxy. Nothing answers there."""
    own, config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"), folder / "docker-config"
    if config.exists():
        return {"DOCKER_CONFIG": str(config)}
    config.mkdir()
    settings = own / "config.json"
    for path in own.iterdir() if own.is_dir() else ():
        if path != settings:
            (config / path.name).symlink_to(path)  # Compose, for example
    told = json.loads(settings.read_text()) if settings.exists() else {}
    told["proxies"] = {"default": {"httpProxy": PROXY, "httpsProxy": PROXY}}
    (config / "config.json").write_text(json.dumps(told))
    return {"DOCKER_CONFIG": str(config)}


def gateway(project: Project, network: str) -> str:
    """The address that this machine has in a network, or would have."""
    found: str = inspect(f"{project.name}_{network}")["IPAM"]["Config"][0]["Gateway"]
    return found


@contextmanager
def running(project: Project) -> Iterator[Project]:
    """The project from up to down; nothing of it is left, nor of those whose tests were killed."""
    for name in command("docker", "compose", "ls", "--all", "--quiet").split():
        if name.startswith(_PREFIX) and not Path(f"/proc/{name.split('-')[2]}").exists():
            command("docker", "compose", "--project-name", name, "down", "--volumes", "--timeout", "0")
    try:
        project.up()
        yield project
    finally:
        project.compose("down", "--volumes", "--timeout", "10", check=False)
    assert project.left() == ""


def left_by_session() -> list[str]:
    """Names of the containers, networks and volumes that this session's tests made and that are still there.

    Federations carry testcontainers' label, compose projects a name with our process id.
    """
    found = []
    for words in (("ps", "-a", "--format", "{{.Names}}"), ("network", "ls"), ("volume", "ls")):
        form = () if words[0] == "ps" else ("--format", "{{.Name}}")
        listed = docker(*words, *form).split()
        found += [name for name in listed if name.startswith(f"{_PREFIX}{os.getpid()}-")]
        found += docker(*words, *form, "--filter", f"label={LABEL_SESSION_ID}={SESSION_ID}").split()
    return found


def unnamed_volumes() -> set[str]:
    """Those that Docker makes for an image's VOLUME where nobody mounts one, and that no container has any more."""
    return set(
        docker(
            "volume", "ls", "-q", "--filter", "dangling=true", "--filter", "label=com.docker.volume.anonymous"
        ).split()
    )


def accuracy(log: str) -> float:
    """The last round's, of examples/digits."""
    lines = [line for line in log.splitlines() if "'accuracy'" in line]
    assert lines, log
    return float(lines[-1].split("'accuracy': '")[1].split("'")[0])
