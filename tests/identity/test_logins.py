"""Logins through Keycloak's own page, and what each account may do then: our command line and stock's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from chromium import Chromium
from identity_world import SOON, TICKER, Cli, OurCli, TheirCli, World, good

OURS = "trellis"
RELEASES = ("1.20.0", "1.24.0", "1.36.0", "1.41.0")


def cli_of(kind: str, world: World, home: Path) -> Cli:
    return OurCli(world, home) if kind == OURS else TheirCli(world, kind, home)


@pytest.mark.parametrize("kind", [OURS, *RELEASES])
async def test_who_logs_in_runs_apps(kind: str, world: World, tmp_path: Path) -> None:
    cli = cli_of(kind, world, tmp_path / "home")
    assert "login" in (await cli.about("ls")).output  # early releases end with 0 all the same
    browser = await asyncio.to_thread(Chromium, world.keycloak.certfile, tmp_path / "profile")
    await cli.log_in(world.keycloak, "researcher", browser)
    run_id = await cli.started()
    assert "tick 1 " in await ticking(cli, run_id)
    assert "tick 0 " in good(await cli.about("log", str(run_id), "--show"))
    good(await cli.about("stop", str(run_id)))
    assert (await cli.runs())[run_id] == "finished:stopped"
    told = [line for line in world.audited() if line["event"]["run_id"] == run_id and is_account(line)]
    assert {line["actor"]["description"] for line in told} == {"researcher"}
    assert {"StartRun", "StopRun"} <= {line["event"]["action"].rpartition(".")[2] for line in told}


def is_account(line: dict[str, Any]) -> bool:
    return bool(line["actor"]["kind"] == "account")


async def ticking(cli: Cli, run_id: int) -> str:
    """The log as it comes, until the second tick."""
    process = await cli.follow(run_id)
    assert process.stdout is not None
    seen = ""
    try:
        async with asyncio.timeout(SOON):
            while "tick 1 " not in seen and (part := await process.stdout.read(4096)):
                seen += part.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return seen


async def test_one_who_says_no_is_not_logged_in(world: World, tmp_path: Path) -> None:
    cli = OurCli(world, tmp_path / "home")
    process, page = await cli.login()
    browser = Browser(world.keycloak.authority.certfile)
    await asyncio.to_thread(browser.deny, page, "researcher", world.keycloak.passwords["researcher"])
    browser.close()
    output, _ = await asyncio.wait_for(process.communicate(), SOON)
    assert process.returncode != 0
    assert "denied" in output.decode()
    assert (await cli.about("ls")).code != 0


async def test_who_may_what(world: World, tmp_path: Path) -> None:
    """Everybody's runs are their own: others do not see them, and only an admin and a viewer see all."""
    users = ("researcher", "colleague", "viewer", "admin", "stranger")
    clis = {user: OurCli(world, tmp_path / user) for user in users}
    for user, cli in clis.items():
        await cli.log_in(world.keycloak, user)
    run_id = await clis["researcher"].started()
    number = str(run_id)

    assert run_id not in await clis["colleague"].runs()
    for words in (f"log {number} --show", f"stop {number}", f"ls --run-id {number}", f"pull {number}"):
        refused = await clis["colleague"].about(*words.split())
        assert refused.code != 0
        assert f"no run {number}" in refused.output.lower(), refused.output

    assert (await clis["viewer"].runs())[run_id] == "running"
    assert "tick 1 " in await ticking(clis["viewer"], run_id)
    for words in (f"stop {number}", f"run {TICKER}", "supernode unregister 77"):
        refused = await clis["viewer"].about(*words.split())
        assert refused.code != 0
        assert "has no role with the permission" in refused.output, refused.output

    for words in ("ls", f"run {TICKER}", "supernode list"):
        refused = await clis["stranger"].about(*words.split())
        assert refused.code != 0
        assert "'stranger' has no role" in refused.output, refused.output

    assert (await clis["researcher"].runs())[run_id] == "running"
    good(await clis["admin"].about("log", number, "--show"))
    good(await clis["admin"].about("stop", number))
    assert (await clis["researcher"].runs())[run_id] == "finished:stopped"

    lines = world.audited()
    by = {(line["actor"]["description"], line["event"]["action"].rpartition(".")[2], line["status"]) for line in lines}
    assert ("researcher", "StartRun", "completed") in by
    assert ("viewer", "StopRun", "denied") in by
    assert ("viewer", "StartRun", "denied") in by
    assert ("stranger", "ListRuns", "denied") in by
    assert ("admin", "StopRun", "completed") in by
    text = world.audit_file.read_text()
    assert all(password not in text for password in world.keycloak.passwords.values())


async def test_a_service_account_needs_no_browser(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(world.keycloak.pipeline_secret + "\n")
    environment = {
        "TRELLIS_OIDC_ISSUER": world.keycloak.issuer,
        "TRELLIS_OIDC_CA_CERTFILE": str(world.keycloak.authority.certfile),
        "TRELLIS_CLIENT_ID": "trellis-pipeline",
        "TRELLIS_CLIENT_SECRET_FILE": str(secret),
    }
    cli = OurCli(world, tmp_path / "home", **environment)
    run_id = await cli.started()
    good(await cli.about("stop", str(run_id)))
    secret.write_text("a guess")
    refused = await cli.about("ls")
    assert refused.code != 0
    assert "was refused" in refused.output
    told = [line for line in world.audited() if line["event"]["run_id"] == run_id and is_account(line)]
    assert {line["actor"]["description"] for line in told} == {"service-account-trellis-pipeline"}
