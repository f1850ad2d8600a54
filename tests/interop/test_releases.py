"""Every release of Flower from 1.20 on: its SuperNode, its command line and its library on our SuperLink, in one run
each; our SuperNodes and our command line on its SuperLink; and many releases in one run."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from example_logs import accuracies
from matrix import Matrix, minor, releases
from trellis_kit.federation import Role, find_program, free_ports
from trellis_testing import TRELLIS, Layout, ProcessFederation, RunHandle, RunResult, StockCli, StockFlwr
from trellis_testing.environment import clean_environment
from trellis_testing.stock import Finished, StockAddresses, started_run, superlink, supernode
from trellis_wire.identity import generate_key

ROUNDS = 3
GOOD = 0.93
SETTINGS = f"num-server-rounds={ROUNDS} min-sites=2"
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


@pytest.mark.parametrize("release", releases())
async def test_its_parts_on_our_superlink(
    release: str, matrix: Matrix, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    app = request.getfixturevalue("legacy" if minor(release) < (1, 21) else "digits")
    # Command lines before 1.30 do not say their release, and 1.23 shows nodes in a layout of its own.
    told = ("--assume-cli-version", release) if minor(release) < NAMED else ()
    layout = Layout(supernodes=(TRELLIS, release), guest=release, superlink_flags=told)
    with matrix.cell(release, "SuperNode"), matrix.cell(release, "command line"), matrix.cell(release, "app library"):
        async with ProcessFederation(layout, tmp_path) as federation:
            at = federation.addresses
            cli = StockCli(StockFlwr(release), tmp_path / "cli", control=at.control, http=at.http)
            async with asyncio.timeout(400):
                output = good(await cli.run(app, "--run-config", SETTINGS))
                found = accuracies(output)
                assert len(found) == ROUNDS + 1
                assert found[-1] >= GOOD
                run_id = started_run(output)
                await looks(cli, app, run_id)
                await stops(cli, app)
                if minor(release) >= SUPERNODES:
                    await administers(cli, app, tmp_path)
                if minor(release) >= FEDERATIONS:
                    assert "default" in good(await cli.about(app, "federation", "list"))
                if minor(release) >= PULL:
                    which = [str(run_id)] if minor(release) >= PULL_BY_PLACE else ["--run-id", str(run_id)]
                    pulled = good(await cli.about(app, "pull", *which))
                    assert f"/v1/artifacts/{run_id}/" in re.sub(r"\s", "", pulled)


@pytest.mark.parametrize("release", releases())
async def test_its_supernodes_outlive_the_superlink(
    release: str, matrix: Matrix, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """They never register again (WIRE.md 2.5): a SuperLink that comes back goes on with them, and one that has never
    seen them takes them in, as they sign what they send."""
    app = request.getfixturevalue("legacy" if minor(release) < (1, 21) else "digits")
    settings = {"num-server-rounds": ROUNDS, "min-sites": 2}
    with matrix.cell(release, "SuperNode"):
        async with (
            ProcessFederation(Layout(supernodes=(release, release)), tmp_path) as federation,
            asyncio.timeout(400),
        ):
            run = await federation.run(app, settings)
            await in_round(run, 1)
            federation["superlink"].kill()
            federation["superlink"].start()
            assert_learned(await run.finished(), ROUNDS)
            federation["superlink"].kill()
            for path in (tmp_path / "superlink").glob("superlink.db*"):
                path.unlink()
            federation["superlink"].start()
            again = await (await federation.run(app, {**settings, "num-server-rounds": 1})).finished()
            assert again.outcome == "completed", again.reason
            assert len(accuracies(again.log)) == 2, again.log


async def in_round(run: RunHandle, number: int) -> None:
    """Returns when the run has judged so many rounds."""
    seen = ""
    async for part in run.follow():
        seen += part
        if len(accuracies(seen)) > number:
            return
    raise AssertionError(f"The run ended before round {number}:\n{seen}")


def assert_learned(result: RunResult, rounds: int) -> None:
    """It completed and every round was judged, the last one well."""
    assert result.outcome == "completed", result.reason
    found = accuracies(result.log)
    assert len(found) == rounds + 1, result.log
    assert found[-1] >= GOOD


@pytest.mark.parametrize("release", ["1.24.0", "1.38.0"])
async def test_supernodes_behind_the_grpc_adapter(release: str, digits: Path, tmp_path: Path) -> None:
    async with ProcessFederation(Layout(supernodes=()), tmp_path) as federation, asyncio.timeout(400):
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
            for index, port in enumerate(free_ports(2))
        ]
        try:
            for node in nodes:
                node.start()  # not earlier: with the adapter they do not wait for a SuperLink
            run = await federation.run(digits, {"num-server-rounds": ROUNDS, "min-sites": 2})
            assert_learned(await run.finished(), ROUNDS)
        finally:
            for node in nodes:
                print(f"----- {node.name} -----\n{node.log()[-8000:]}")
                await node.stop(10)


async def looks(cli: StockCli, app: Path, run_id: int) -> None:
    """`flwr ls` and `flwr log`."""
    assert str(run_id) in re.sub(r"[^0-9]", "", good(await cli.about(app, "ls")))
    listed = json.loads(good(await cli.about(app, "ls", "--format", "json")))
    assert [str(run["run-id"]) for run in listed["runs"]] == [str(run_id)]
    assert listed["runs"][0]["status"] == "finished:completed"
    logged = good(await cli.about(app, "log", str(run_id), "--show"))
    assert len(accuracies(logged)) == ROUNDS + 1


async def stops(cli: StockCli, app: Path) -> None:
    """A run that would go on for long is stopped, and stays stopped."""
    where = str(cli.app(app))
    run_id = started_run(good(await cli("run", where, "here", "--run-config", "num-server-rounds=10000 min-sites=2")))
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
        async with OnStock(flwr, tmp_path) as there, asyncio.timeout(240):
            output = good(await there.trellis("run", str(digits), "--stream", "--run-config", SETTINGS))
            assert accuracies(output)[-1] >= GOOD
            run_id = started_run(output)
            listed = json.loads(good(await there.trellis("ls", "--format", "json")))
            assert [(str(run["run-id"]), run["status"]) for run in listed["runs"]] == [
                (str(run_id), "finished:completed")
            ]
            assert len(accuracies(good(await there.trellis("log", str(run_id))))) == ROUNDS + 1
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
            async with asyncio.timeout(90):
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
    """In the middle of it the SuperLink dies and comes back."""
    layout = Layout(supernodes=(TRELLIS, "1.20.0", "1.24.0", "1.29.0", "1.33.0", "1.38.0", "1.41.0"))
    async with ProcessFederation(layout, tmp_path) as federation, asyncio.timeout(500):
        run = await federation.run(legacy, {"num-server-rounds": 5, "min-sites": len(layout.supernodes)})
        await in_round(run, 2)
        federation["superlink"].kill()
        federation["superlink"].start()
        assert_learned(await run.finished(), 5)
