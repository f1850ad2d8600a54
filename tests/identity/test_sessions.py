"""What becomes of a login later: tokens that expire, a session that is ended, keys that change, a Keycloak that is
away."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from grpc import StatusCode
from identity_world import OurCli, TheirCli, World, good, service_token, until
from keycloak_server import Keycloak
from trellis_cli.credentials import CredentialFile
from trellis_superlink.identity.tokens import PAUSE

RENEWED = 60.0
"""Seconds after which all command lines open their log stream anew (Flower 1.20-1.42, and ours)."""


def access_token(world: World, home: Path) -> str:
    """Of a login with our command line."""
    tokens = CredentialFile({"FLWR_HOME": str(home / ".flwr")}).load(world.addresses.control)
    assert tokens is not None
    return tokens.access


async def test_tokens_expire_are_renewed_and_the_session_ends(world: World, keycloak: Keycloak, tmp_path: Path) -> None:
    home = tmp_path / "ours"
    clis = {"ours": OurCli(world, home)} | {
        release: TheirCli(world, release, tmp_path / release) for release in ("1.24.0", "1.36.0", "1.41.0")
    }
    with keycloak.access_tokens_for(1):
        for cli in clis.values():
            await cli.log_in(keycloak, "researcher")
        run_id = await clis["ours"].started()
        following = {name: asyncio.create_task(followed(cli, run_id)) for name, cli in clis.items()}

        async def expired() -> None:
            token = access_token(world, home)
            await until(lambda: world.call(token) is StatusCode.UNAUTHENTICATED, "the access token is over")

        await expired()
        before = access_token(world, home)
        for cli in clis.values():
            assert (await cli.runs())[run_id] == "running"
        assert access_token(world, home) != before
        await expired()
        for cli in clis.values():
            assert (await cli.runs())[run_id] == "running"  # with the refresh token that the last one brought

        # The logs go on although the token that they began with, and the one after it, are over.
        for name, seconds in (await gathered(following)).items():
            assert seconds > RENEWED, name

        keycloak.end_sessions("researcher")
        await expired()
        for cli in clis.values():
            async with asyncio.timeout(60):
                while "login" not in (await cli.about("ls")).output:
                    continue  # its token is younger than ours, and still good
        assert any("session is over" in str(line.get("reason")).lower() for line in world.audited())
    again = OurCli(world, home)
    await again.log_in(keycloak, "researcher")
    good(await again.about("stop", str(run_id)))


async def followed(cli: OurCli | TheirCli, run_id: int) -> float:
    """Reads the log until it has gone on for well longer than one stream lasts; the seconds that it has."""
    process = await cli.follow(run_id)
    assert process.stdout is not None
    times: list[float] = []
    rest = ""
    try:
        async with asyncio.timeout(4 * RENEWED):
            while not times or times[-1] - times[0] < RENEWED + 15:
                part = await process.stdout.read(4096)
                assert part, f"the log ended after {times[-1] - times[0]:.0f} s: {rest}"
                rest += part.decode()
                times += [float(found) for found in re.findall(r"tick \d+ at ([\d.]+)\s", rest)]
                rest = rest[-300:]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return times[-1] - times[0]


async def gathered(tasks: dict[str, asyncio.Task[float]]) -> dict[str, float]:
    return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))


async def test_keys_are_rotated(world: World, keycloak: Keycloak) -> None:
    """Tokens signed with a key that the SuperLink has never seen are taken at once, or when it may ask again; those
    from before stay good, as their key is still published."""
    old = service_token(keycloak)
    assert world.call(old) is StatusCode.OK
    with keycloak.new_key():
        new = service_token(keycloak)
        await until(lambda: world.call(new) is StatusCode.OK, "the new key is known", PAUSE + 60)
        assert world.call(old) is StatusCode.OK


async def test_keycloak_is_away(world: World, keycloak: Keycloak, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cli = OurCli(world, home)
    with keycloak.access_tokens_for(1):
        await cli.log_in(keycloak, "researcher")
    token = service_token(keycloak)
    assert world.call(token) is StatusCode.OK
    await keycloak.role.stop(60)
    try:
        assert world.call(token) is StatusCode.OK  # the keys are known, and nobody has to be asked
        short = access_token(world, home)
        await until(lambda: world.call(short) is StatusCode.UNAUTHENTICATED, "the access token is over")
        for words in ("ls", "login --no-browser"):
            refused = await cli.about(*words.split())
            assert refused.code != 0
            assert "identity provider does not answer" in refused.output, refused.output
        async with World(tmp_path / "late", keycloak, executor=False) as late:
            assert late.call(token) is StatusCode.UNAVAILABLE
            keycloak.role.start()
            await asyncio.to_thread(keycloak.wait)
            await until(lambda: late.call(token) is StatusCode.OK, "a SuperLink that began without keys has them")
    finally:
        keycloak.role.start()  # if the test failed before it did
        await asyncio.to_thread(keycloak.wait)
    assert isinstance(await cli.runs(), dict)  # the session outlived it, and so did the login
