"""Stock Flower programs as peers: SuperNodes, SuperLinks and the command line of any release from 1.20 on."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trellis_kit.federation import Role

from trellis_testing.environment import clean_environment
from trellis_testing.venvs import StockFlwr

# Since which release a program's surface changed (Flower 1.20-1.42).
_NO_DEPENDENCY_INSTALLATION = (1, 32)  # the SuperLink's flag to leave the environment alone
_RUNTIME_OVER_HTTP = (1, 35)
_CONTROL_OVER_HTTP = (1, 37)
_FLEET_OVER_HTTP = (1, 40)
_ACCOUNTS = (1, 23)  # users are called accounts
_CONFIG_TOML = (1, 26)  # the command line reads $FLWR_HOME/config.toml instead of the app's pyproject.toml


def supernode(
    release: StockFlwr,
    name: str,
    directory: Path,
    *,
    fleet: str,
    http: str,
    port: int,
    node_config: str,
    root_certificates: Path | None = None,
    flags: Sequence[str] = (),
) -> Role:
    """A stock SuperNode that starts its ClientApps itself; `port` is that of its own API, on 127.0.0.1.

    It joins the SuperLink at `fleet` (gRPC) or `http`, host:port, whichever its release speaks; with root certificates
    over TLS.
    """
    release.ensure()
    superlink = http if release.minor >= _FLEET_OVER_HTTP else fleet
    if release.minor >= _RUNTIME_OVER_HTTP:
        own = ["--host", "127.0.0.1", "--port", str(port)]
    else:
        own = ["--clientappio-api-address", f"127.0.0.1:{port}"]
    secure = ["--insecure"] if root_certificates is None else ["--root-certificates", str(root_certificates)]
    argv = [release.program("flower-supernode"), *secure, "--superlink", superlink]
    argv += ["--node-config", node_config, "--isolation", "subprocess", *own, *flags]
    return _role(release, name, directory, argv)


@dataclass(frozen=True)
class StockAddresses:
    """Where a stock SuperLink's surfaces are, as host:port; later releases move one after the other to `http`."""

    serverappio: str
    fleet: str
    control: str
    http: str

    def fleet_of(self, release: StockFlwr) -> str:
        """Where SuperNodes of the same release join."""
        return self.http if release.minor >= _FLEET_OVER_HTTP else self.fleet

    def control_of(self, release: StockFlwr) -> str:
        """Where command lines of the same release connect."""
        return self.http if release.minor >= _CONTROL_OVER_HTTP else self.control


def superlink(release: StockFlwr, name: str, directory: Path, at: StockAddresses) -> Role:
    """A stock SuperLink that starts ServerApps itself and keeps everything in memory."""
    release.ensure()
    argv = [release.program("flower-superlink"), "--insecure", "--isolation", "subprocess"]
    if release.minor >= _RUNTIME_OVER_HTTP:
        host, _, port = at.http.rpartition(":")
        argv += ["--host", host, "--port", port]
    else:
        argv += ["--serverappio-api-address", at.serverappio]
    if release.minor < _FLEET_OVER_HTTP:
        argv += ["--fleet-api-address", at.fleet]
    if release.minor < _CONTROL_OVER_HTTP:
        argv += ["--control-api-address" if release.minor >= (1, 21) else "--exec-api-address", at.control]
    if release.minor >= _NO_DEPENDENCY_INSTALLATION:
        argv.append("--disable-runtime-dependency-installation")
    return _role(release, name, directory, argv)


def _role(release: StockFlwr, name: str, directory: Path, argv: Sequence[str]) -> Role:
    home = directory / name
    env = clean_environment(home, release.path / "bin")
    return Role(name, argv, env=env, cwd=home, log_path=directory / "logs" / f"{name}.log")


@dataclass(frozen=True)
class Finished:
    """What a command printed, both streams together, and its exit code."""

    code: int
    output: str


class StockCli:
    """The stock `flwr` command, connected to the SuperLink at `control` (gRPC) or `http`, host:port, whichever its
    release speaks. `login`: whether users log in there, which has to be said up to 1.25."""

    def __init__(
        self,
        release: StockFlwr,
        directory: Path,
        *,
        control: str,
        http: str,
        root_certificates: Path | None = None,
        login: bool = False,
    ) -> None:
        self.release = release.ensure()
        self._home = directory / f"cli-{release.version}"
        self._env = clean_environment(self._home, release.path / "bin")
        address = http if release.minor >= _CONTROL_OVER_HTTP else control
        secure = "insecure = true" if root_certificates is None else f'root-certificates = "{root_certificates}"'
        connection = f'address = "{address}"\n{secure}\n'
        if login and release.minor < _CONFIG_TOML:
            who = "account" if release.minor >= _ACCOUNTS else "user"
            connection += f"enable-{who}-auth = true\n"
        self._section = f"\n[tool.flwr.federations]\ndefault = 'here'\n[tool.flwr.federations.here]\n{connection}"
        if release.minor >= _CONFIG_TOML:
            config = Path(self._env["FLWR_HOME"]) / "config.toml"
            config.parent.mkdir(parents=True)
            config.write_text(f"[superlink]\ndefault = 'here'\n[superlink.here]\n{connection}")

    def app(self, source: Path) -> Path:
        """A copy of an app that this command line can submit (it reads and, from 1.26 on, rewrites pyproject.toml)."""
        copy = self._home / "apps" / source.name
        if not copy.exists():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            if self.release.minor < _CONFIG_TOML:
                with (copy / "pyproject.toml").open("a") as file:
                    file.write(self._section)
        return copy

    async def __call__(self, *arguments: str, cwd: Path | None = None) -> Finished:
        """Run `flwr <arguments>` to its end; the caller bounds the time."""
        process = await self.spawn(*arguments, cwd=cwd)
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Finished(process.returncode or 0, output.decode(errors="replace"))

    async def spawn(self, *arguments: str, cwd: Path | None = None) -> asyncio.subprocess.Process:
        """`flwr <arguments>`, running; both streams of its output come in one pipe."""
        return await asyncio.create_subprocess_exec(
            self.release.program("flwr"),
            *arguments,
            env=self._env,
            cwd=cwd or self._home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def named(self, app: Path, *command: str) -> Sequence[str]:
        """A command about this SuperLink: up to 1.25 that is named by the app and its federation."""
        where = ["here"] if self.release.minor >= _CONFIG_TOML else [str(self.app(app)), "here"]
        return (*command, *where)

    async def about(self, app: Path, *command: str) -> Finished:
        """`flwr <command>` about this SuperLink."""
        return await self(*self.named(app, *command))

    async def run(self, app: Path, *options: str) -> Finished:
        """`flwr run APP here --stream <options>`."""
        return await self("run", str(self.app(app)), "here", "--stream", *options)


def started_run(output: str) -> int:
    """The run id that `flwr run` printed."""
    match = re.search(r"Successfully started run (\d+)", output)
    if match is None:
        raise ValueError(f"No run was started:\n{output}")
    return int(match[1])
