"""Federations of accounts and nodes: by our command line, and by stock's over gRPC and over HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from example_logs import accuracies
from trellis_kit.federation import find_program
from trellis_testing import TRELLIS, Layout, ProcessFederation, StockCli, StockFlwr
from trellis_testing.environment import clean_environment
from trellis_testing.stock import Finished

NAME = "@none/ours"
ONE_ROUND = "num-server-rounds=1 min-sites=1"


async def test_a_run_in_a_federation_has_its_nodes_only(digits: Path, tmp_path: Path) -> None:
    async with (
        ProcessFederation(Layout(supernodes=(TRELLIS, TRELLIS)), tmp_path) as federation,
        asyncio.timeout(240),
    ):

        async def trellis(*words: str) -> Finished:
            process = await asyncio.create_subprocess_exec(
                find_program("trellis"),
                *words,
                *("--superlink", federation.addresses.control, "--insecure"),
                env=clean_environment(tmp_path / "cli", Path(sys.executable).parent),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = await process.communicate()
            return Finished(process.returncode or 0, output.decode())

        async def good(*words: str) -> str:
            done = await trellis(*words)
            assert done.code == 0, done.output
            return done.output

        ours, other = sorted(await federation.online())
        assert NAME in await good("federation", "create", "ours", "--description", "one site")
        await good("federation", "add-supernode", str(ours), NAME)
        for where, node in ((NAME, ours), ("@none/default", other)):
            output = await good("run", str(digits), "--federation", where, "--stream", "--run-config", ONE_ROUND)
            assert len(accuracies(output)) == 2
            shown = json.loads(await good("federation", "show", where, "--format", "json"))["federation"]
            assert [one["node_id"] for one in shown["nodes"]] == [str(node)]
            assert [one["status"] for one in shown["runs"]] == ["finished:completed"]
        listed = json.loads(await good("federation", "list", "--format", "json"))["federations"]
        assert [one["id"] for one in listed] == ["@none/default", NAME]
        assert str(ours) in await good("federation", "ls", "--federation", NAME)
        await good("federation", "invite", "create", "bob", NAME)
        invited = json.loads(await good("federation", "invite", "list", "--format", "json"))
        assert [one["invited"] for one in invited["created-invitations"]] == ["bob"]
        await good("federation", "invite", "revoke", "bob", NAME)
        for nobodys in (("accept", NAME), ("reject", NAME), ("revoke", "bob", NAME)):
            assert "No invitation" in (await trellis("federation", "invite", *nobodys)).output
        assert "keeps its owner" in (await trellis("federation", "remove-account", NAME)).output
        await good("federation", "remove-supernode", str(ours), NAME)
        await good("federation", "archive", NAME)
        refused = await trellis("run", str(digits), "--federation", NAME)
        assert (refused.code, refused.output) == (1, f"Error: Federation '{NAME}' does not exist\n")


@pytest.mark.parametrize("release", ["1.33.0", "1.41.0"])
async def test_stocks_commands(release: str, tmp_path: Path) -> None:
    async with ProcessFederation(Layout(supernodes=(TRELLIS,)), tmp_path) as federation, asyncio.timeout(240):
        at = federation.addresses
        cli = StockCli(StockFlwr(release), tmp_path / "stock", control=at.control, http=at.http)

        async def good(*words: str) -> str:
            done = await cli(*words, "here")
            assert done.code == 0, done.output
            return done.output

        (node,) = await federation.online()
        await good("federation", "create", NAME, "--description", "one site")
        await good("federation", "add-supernode", str(node), NAME)
        shown = json.loads(await good("federation", "list", "--federation", NAME, "--format", "json"))
        assert [one["node_id"] for one in shown["federation"]["nodes"]] == [str(node)]
        assert [one["member_id"] for one in shown["federation"]["members"]] == ["none"]
        await good("federation", "invite", "create", "bob", NAME)
        invited = json.loads(await good("federation", "invite", "list", "--format", "json"))
        assert [one["invited"] for one in invited["created-invitations"]] == ["bob"]
        await good("federation", "invite", "revoke", "bob", NAME)
        refused = await cli("federation", "invite", "accept", NAME, "here")
        assert refused.code == 1
        assert "invit" in refused.output
        await good("federation", "remove-supernode", str(node), NAME)
        await good("federation", "archive", NAME)
        listed = json.loads(await good("federation", "list", "--format", "json"))
        assert [(one["id"], one["archived"]) for one in listed["federations"]] == [
            ("@none/default", False),
            (NAME, True),
        ]
