"""Every release of Flower from 1.20 on: its SuperNode, its command line and its library on our SuperLink; our
SuperNodes and our command line on its SuperLink; and many releases in one run."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from example_logs import accuracies
from matrix import Matrix, minor, named, releases
from trellis_kit.federation import Role, find_program, free_ports
from trellis_testing import TRELLIS, Layout, ProcessFederation, RunHandle, RunResult, StockCli, StockFlwr
from trellis_testing.environment import clean_environment
from trellis_testing.stock import Finished, StockAddresses, started_run, superlink, supernode
from trellis_wire.identity import generate_key

# What two sites reach in so many rounds, wherever they run and whichever of the two apps: nothing in them is random
# that is not seeded (examples/digits). A rounding may move one image of 360.
TWO_SITES = (0.9028, 0.9306)
SEVEN_SITES = (0.8, 0.9056, 0.8861)
ONE_IMAGE = 0.003

ENDLESS = "num-server-rounds=10000 min-sites=2"
# A machine that does other work takes several times what a quiet one does; a test that hangs ends nevertheless.
pytestmark = pytest.mark.timeout(1300)
SECONDS = 900
MESSAGE_APPS = (1, 21)
PULL = (1, 24)
PULL_BY_PLACE = (1, 26)
SUPERNODES = (1, 23)
FEDERATIONS = (1, 24)
OUR_CLIENTS = (1, 24)
NAMED = (1, 30)


def good(done: Finished) -> str:
    """What a command that must succeed printed."""
    assert done.code == 0, done.output
    return done.output


def assert_learned(log: str, expected: Sequence[float]) -> None:
    """The app judged its first model and that of each round, and became as good as it does everywhere."""
    assert accuracies(log)[1:] == pytest.approx(list(expected), abs=ONE_IMAGE), log


def assert_completed(result: RunResult, expected: Sequence[float]) -> None:
    assert result.outcome == "completed", result.reason
    assert_learned(result.log, expected)


@pytest.mark.parametrize("release", releases())
async def test_its_parts_on_our_superlink(
    release: str, matrix: Matrix, digits: Path, legacy: Path, tmp_path: Path
) -> None:
    """Its command line drives runs of both apps on one SuperNode of that release and one of ours.

    Where releases were asked for (RELEASES), the SuperLink dies under the second run and comes back, and dies once
    more and comes back without its database. `make test` shows that by the run with many releases.
    """
    app = legacy if minor(release) < MESSAGE_APPS else digits
    # Command lines before 1.30 do not say their release, and 1.23 shows nodes in a layout of its own.
    told = ("--assume-cli-version", release) if minor(release) < NAMED else ()
    layout = Layout(supernodes=(TRELLIS, release), guest=release, superlink_flags=told)
    with matrix.cell(release, "SuperNode"), matrix.cell(release, "command line"), matrix.cell(release, "app library"):
        async with ProcessFederation(layout, tmp_path) as federation, asyncio.timeout(SECONDS):
            at = federation.addresses
            cli = StockCli(StockFlwr(release), tmp_path / "cli", control=at.control, http=at.http)
            output = good(await cli.run(app, "--run-config", f"num-server-rounds={len(TWO_SITES)} min-sites=2"))
            assert_learned(output, TWO_SITES)
            await looks(cli, app, started_run(output))
            if minor(release) >= SUPERNODES:
                await administers(cli, app, tmp_path)
            second = good(await cli("run", str(cli.app(legacy)), "here", "--run-config", ENDLESS))
            run = RunHandle(federation.control, started_run(second))
            judged = await rounds_of(run, 1)
            if named():
                await dies(federation)
                await rounds_of(run, judged + 2)  # one may have been all but over, the next is new
            await stops(cli, app, run.run_id)
            if named():
                await dies(federation, forgetting=tmp_path / "superlink")
                assert_completed(await trained(federation, app, 1), TWO_SITES[:1])


async def trained(federation: ProcessFederation, app: Path, rounds: int) -> RunResult:
    """A run on all SuperNodes of the federation, to its end."""
    sites = len(federation.layout.supernodes)
    return await (await federation.run(app, {"num-server-rounds": rounds, "min-sites": sites})).finished()


async def rounds_of(run: RunHandle, number: int) -> int:
    """Waits until the run has judged so many rounds; how many it has by then."""
    seen = ""
    async for part in run.follow():
        seen += part
        if (found := len(accuracies(seen)) - 1) >= number:
            return found
    raise AssertionError(f"The run ended before round {number}:\n{seen}")


async def dies(federation: ProcessFederation, forgetting: Path | None = None) -> None:
    """The SuperLink is killed and comes back; `forgetting` its database, which is in this folder.

    Stock SuperNodes never register again (WIRE.md 2.5). One that does not know them takes them in, because they sign
    what they send.
    """
    federation["superlink"].kill()
    if forgetting is not None:
        for path in forgetting.glob("superlink.db*"):
            path.unlink()
    federation["superlink"].start()

    async def answers() -> bool:
        try:
            await federation.control.nodes()
        except grpc.aio.AioRpcError:  # a call may have gone into the connection that was ending
            return False
        return True

    await federation.until(answers, 180, "the SuperLink answers again")


async def test_supernodes_behind_the_grpc_adapter(digits: Path, tmp_path: Path) -> None:
    """One that does not say its release, and one that does."""
    async with ProcessFederation(Layout(supernodes=()), tmp_path) as federation, asyncio.timeout(SECONDS):
        at = federation.addresses
        nodes = [
            supernode(
                StockFlwr(release),
                f"adapter-{index}",
                tmp_path,
                fleet=at.fleet,
                http=at.http,
                port=port,
                node_config=f"partition-id={index} num-partitions=2",
                flags=("--grpc-adapter",),
            )
            for index, (release, port) in enumerate(zip(("1.24.0", "1.38.0"), free_ports(2), strict=True))
        ]
        try:
            for node in nodes:
                node.start()  # not earlier: with the adapter they do not wait for a SuperLink
            run = await federation.run(digits, {"num-server-rounds": len(TWO_SITES), "min-sites": 2})
            assert_completed(await run.finished(), TWO_SITES)
        finally:
            for node in nodes:
                print(f"----- {node.name} -----\n{node.log()[-8000:]}")
                await node.stop(10)


async def looks(cli: StockCli, app: Path, run_id: int) -> None:
    """`flwr ls`, `log`, `federation list` and `pull`, all at once: each is a process that computes little."""
    version = minor(cli.release.version)
    asked = [("ls",), ("ls", "--format", "json"), ("log", str(run_id), "--show")]
    if version >= FEDERATIONS:
        asked += [("federation", "list")]
    if version >= PULL:
        asked += [("pull", str(run_id)) if version >= PULL_BY_PLACE else ("pull", "--run-id", str(run_id))]
    cli.app(app)
    table, listed, logged, *more = map(good, await asyncio.gather(*(cli.about(app, *command) for command in asked)))
    assert str(run_id) in re.sub(r"[^0-9]", "", table)
    runs = json.loads(listed)["runs"]
    assert [(str(run["run-id"]), run["status"]) for run in runs] == [(str(run_id), "finished:completed")]
    assert_learned(logged, TWO_SITES)
    if version >= FEDERATIONS:
        assert "default" in more[0]
    if version >= PULL:
        await asyncio.to_thread(assert_downloads, more[1], run_id)


def assert_downloads(said: str, run_id: int) -> None:
    """The link that `flwr pull` shows leads to what the ServerApp left."""
    link = re.search(rf"https?://[^ ]+?/v1/artifacts/{run_id}/[\w.%-]+\?[\w.=&%-]+", re.sub(r"\s", "", said))
    assert link is not None, said
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(link[0], timeout=60) as answer:
        assert "model.npz" in zipfile.ZipFile(BytesIO(answer.read())).namelist()


async def stops(cli: StockCli, app: Path, run_id: int) -> None:
    """A run that would go on for long is stopped, and stays stopped."""
    good(await cli.about(app, "stop", str(run_id)))
    listed = json.loads(good(await cli.about(app, "ls", "--run-id", str(run_id), "--format", "json")))
    assert listed["runs"][0]["status"] == "finished:stopped"


async def administers(cli: StockCli, app: Path, folder: Path) -> None:
    """A SuperNode's key is registered, listed and taken out."""
    public = generate_key("P-384").public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / "node.pub").write_bytes(public)
    registered = good(await cli.about(app, "supernode", "register", str(folder / "node.pub")))
    [node_id] = set(re.findall(r"\d{15,20}", registered))
    listed = good(await cli.about(app, "supernode", "list"))
    assert "registered" in listed
    assert "online" in listed
    good(await cli.about(app, "supernode", "unregister", node_id))
    left = re.sub(r"[^0-9]", "", good(await cli.about(app, "supernode", "list")))
    assert node_id not in left


@pytest.mark.parametrize("release", [one for one in releases() if minor(one) >= OUR_CLIENTS])
async def test_our_supernodes_and_command_line_on_its_superlink(
    release: str, matrix: Matrix, digits: Path, tmp_path: Path
) -> None:
    flwr = StockFlwr(release)
    with matrix.cell(release, "SuperLink"):
        async with OnStock(flwr, tmp_path) as there, asyncio.timeout(SECONDS):
            settings = "num-server-rounds=1 min-sites=2"  # the SuperLink is stock's, and so is the pace
            output = good(await there.trellis("run", str(digits), "--stream", "--run-config", settings))
            assert_learned(output, TWO_SITES[:1])
            run_id = started_run(output)
            listed = json.loads(good(await there.trellis("ls", "--format", "json")))
            assert [(str(run["run-id"]), run["status"]) for run in listed["runs"]] == [
                (str(run_id), "finished:completed")
            ]
            assert_learned(good(await there.trellis("log", str(run_id))), TWO_SITES[:1])
            assert "online" in good(await there.trellis("supernode", "list"))


class OnStock:
    """A stock SuperLink with two SuperNodes of ours, and our command line."""

    def __init__(self, release: StockFlwr, directory: Path) -> None:
        ports = free_ports(8)
        at = StockAddresses(*(f"127.0.0.1:{port}" for port in ports[:4]))
        self._directory = directory
        self._control = at.control_of(release)
        self._env = clean_environment(directory / "home", Path(sys.executable).parent)
        self._roles = [superlink(release, "superlink", directory, at)]
        for index, port in enumerate(ports[4:6]):
            node = ["--superlink", at.fleet_of(release), "--clientappio-api-address", f"127.0.0.1:{port}"]
            node += ["--node-config", f"partition-id={index} num-partitions=2"]
            node += ["--state-dir", str(directory / f"state-{index}"), "--isolation", "subprocess"]
            node += ["--guest-python", str(release.python)]
            self._roles.append(self._role(f"supernode-{index}", "trellis-supernode", "--insecure", *node))

    def _role(self, name: str, program: str, *flags: str) -> Role:
        argv = (find_program(program), *flags)
        log = self._directory / f"{name}.log"
        return Role(name, argv, env=self._env, cwd=self._directory / name, log_path=log)

    async def __aenter__(self) -> OnStock:
        for role in self._roles:
            role.start()
        try:
            async with asyncio.timeout(SECONDS / 3):
                while (await self.trellis("ls")).code != 0:
                    ended = [role.last_words() for role in self._roles if role.exit_code is not None]
                    assert not ended, "\n".join(ended)
                    await asyncio.sleep(0.5)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for role in self._roles:
            print(f"----- {role.name} -----\n{role.log()[-8000:]}")
        for role in reversed(self._roles):
            await role.stop(10)

    async def trellis(self, *arguments: str) -> Finished:
        """Our command line, about that SuperLink."""
        process = await asyncio.create_subprocess_exec(
            find_program("trellis"),
            *arguments,
            "--superlink",
            self._control,
            "--insecure",
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await process.communicate()
        code = process.returncode or 0
        return Finished(code, output.decode() if code == 0 else (output + errors).decode())


async def test_many_releases_in_one_run(legacy: Path, tmp_path: Path) -> None:
    """In the middle of it the SuperLink dies and comes back; after it, it comes back without its database."""
    layout = Layout(supernodes=(TRELLIS, "1.20.0", "1.24.0", "1.29.0", "1.33.0", "1.38.0", "1.41.0"))
    async with ProcessFederation(layout, tmp_path) as federation, asyncio.timeout(SECONDS):
        rounds = {"num-server-rounds": len(SEVEN_SITES), "min-sites": len(layout.supernodes)}
        run = await federation.run(legacy, rounds)
        await rounds_of(run, 1)
        await dies(federation)
        assert_completed(await run.finished(), SEVEN_SITES)
        await dies(federation, forgetting=tmp_path / "superlink")
        assert_completed(await trained(federation, legacy, 1), SEVEN_SITES[:1])
