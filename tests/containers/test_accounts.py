"""The Compose layer with Keycloak: `make secrets`, up, and users log in through a browser of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import built_images
import pytest
from browser import Browser
from commands import CommandFailed, command
from compose_world import (
    COMPOSE,
    ROOT,
    Project,
    accuracy,
    behind_a_proxy,
    docker,
    inspect,
    ports,
    running,
)
from trellis_kit.federation import find_program, free_ports
from trellis_testing.environment import clean_environment
from waits import wait_until

LAYERS = [COMPOSE / f"compose{layer}.yaml" for layer in ("", ".tls", ".oidc")]
DIGITS = ROOT / "examples" / "digits"
PASSWORDS = ("keycloak-root-password", "admin-password", "researcher-password", "viewer-password", "pipeline-secret")

pytestmark = [pytest.mark.usefixtures("images"), pytest.mark.timeout(2400)]


@dataclass(frozen=True)
class Accounts:
    project: Project
    certs: Path
    secrets: Path
    control: str
    keycloak: str

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()


class Patient(Project):
    """Keycloak takes its time."""

    def up(self) -> None:
        self.compose("up", "--wait", "--wait-timeout", "900", timeout=1000)


@pytest.fixture(scope="module")
def accounts(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accounts]:
    folder = tmp_path_factory.mktemp("accounts")
    secrets, certs = folder / "secrets", folder / "certs"
    command("bash", str(ROOT / "scripts" / "make-secrets"), str(secrets))
    [port] = free_ports(1, "0.0.0.0")
    published, url = ports(), f"https://localhost:{port}"
    env = {**published, **behind_a_proxy(folder)}
    env |= {"SECRETS": str(secrets), "CERTS": str(certs), "KEYCLOAK_PORT": str(port), "KEYCLOAK_URL": url}
    try:
        Project(LAYERS, env).compose("pull", "--quiet", "keycloak")
    except CommandFailed:  # where no registry answers
        if "KEYCLOAK_IMAGE" not in os.environ:
            env["KEYCLOAK_IMAGE"] = built_images.keycloak_stand_in()
    with running(Patient(LAYERS, env)) as project:
        yield Accounts(project, certs, secrets, f"localhost:{published['CONTROL_PORT']}", url)


class Cli:
    """Our command line on this machine, with a user's logins."""

    def __init__(self, accounts: Accounts, home: Path) -> None:
        self._where = ("--superlink", accounts.control, "--root-certificates", str(accounts.certs / "ca.crt"))
        self._env = clean_environment(home, Path(sys.executable).parent)

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *(find_program("trellis"), *words, *self._where),
            env=self._env,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def __call__(self, *words: str) -> tuple[int, str]:
        """The exit code, and what it printed."""
        process = await self.start(*words)
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()


async def log_in(accounts: Accounts, cli: Cli, user: str) -> None:
    process = await cli.start("login", "--no-browser")
    assert process.stdout is not None
    said = (await process.stdout.readline()).decode()
    found = re.search(r"https://\S+", said)
    assert found is not None, said
    assert found[0].startswith(accounts.keycloak + "/"), said
    browser = Browser(accounts.certs / "ca.crt")
    await asyncio.to_thread(browser.agree, found[0], user, accounts.secret(f"{user}-password"))
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_users_log_in_and_have_their_roles(accounts: Accounts, tmp_path: Path) -> None:
    researcher, viewer = Cli(accounts, tmp_path / "researcher"), Cli(accounts, tmp_path / "viewer")
    code, said = await researcher("ls")
    assert code != 0
    assert "login" in said
    await log_in(accounts, researcher, "researcher")
    await log_in(accounts, viewer, "viewer")
    code, said = await researcher("run", str(DIGITS), "--stream")
    assert code == 0, said
    assert accuracy(said) >= 0.93
    code, said = await viewer("ls")
    assert code == 0, said
    assert "digits" in said
    code, said = await viewer("run", str(DIGITS))
    assert code != 0
    assert "no role" in said
    told = accounts.project.python("superlink", "print(open('/app/state/audit.jsonl').read())")
    starts = [line for line in map(json.loads, told.split("\n")[:-2]) if line["event"]["action"].endswith("StartRun")]
    assert {(line["actor"]["description"], line["status"]) for line in starts} == {
        ("researcher", "started"),
        ("researcher", "completed"),
        ("viewer", "denied"),
    }


def test_a_login_by_the_command_line_in_a_container_is_there_for_the_next_one(accounts: Accounts) -> None:
    """In the volume of the service `cli`."""
    with accounts.project.cli_in_background("flwr", "login", "--no-browser", app=DIGITS) as login:
        page = re.compile(r"https://\S+(?=\s)")
        wait_until(lambda: login.ended or page.search(login.log()), "the page to log in at is told", 120)
        found = page.search(login.log())
        assert found is not None, login.log()
        Browser(accounts.certs / "ca.crt").agree(found[0], "viewer", accounts.secret("viewer-password"))
        wait_until(lambda: login.ended, "the login is over", 120)
        assert login.process.returncode == 0, login.log()
    accounts.project.cli("flwr", "ls", app=DIGITS)


def test_passwords_are_files_and_nowhere_else(accounts: Accounts) -> None:
    secrets = [accounts.secret(name) for name in PASSWORDS]
    assert len(set(secrets)) == len(PASSWORDS)
    assert all(len(secret) >= 32 for secret in secrets)
    before = {path: path.read_text() for path in accounts.secrets.iterdir()}
    command("bash", str(ROOT / "scripts" / "make-secrets"), str(accounts.secrets))
    assert {path: path.read_text() for path in accounts.secrets.iterdir()} == before  # what is there stays
    assert accounts.secrets.stat().st_mode & 0o077 == 0
    for container in accounts.project.containers().values():
        shown = json.dumps(inspect(container)) + docker("logs", container)
        assert not [secret for secret in secrets if secret in shown]


def test_keycloak_is_reached_by_who_needs_it(accounts: Accounts) -> None:
    """Its network with the SuperLink leads nowhere else, and its operations port is not published."""
    found = inspect(accounts.project.containers()["keycloak"])
    assert list(found["HostConfig"]["PortBindings"]) == ["8443/tcp"]
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert inspect(f"{accounts.project.name}_login")["Internal"]
