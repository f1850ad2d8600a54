"""Stock SuperNodes that nobody registered: held until an operator approves them, and out once they are removed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from identity_world import SOON, Cli, OurCli, World, good, until
from keycloak_server import Keycloak
from trellis_kit.federation import Role, free_ports
from trellis_testing import StockFlwr
from trellis_testing.stock import supernode
from trellis_wire.identity import generate_key

RELEASES = ("1.20.0", "1.24.0", "1.41.0")
"""One of each life cycle, and one over HTTP."""


def node(world: World, release: str, directory: Path, *flags: str) -> Role:
    return supernode(
        StockFlwr(release),
        f"supernode-{release}",
        directory,
        fleet=world.addresses.fleet,
        http=world.addresses.http,
        port=free_ports(1)[0],
        node_config="partition-id=0 num-partitions=1",
        root_certificates=world.certs.ca,
        flags=flags,
    )


async def listed(cli: Cli) -> dict[int, dict[str, Any]]:
    found = json.loads(good(await cli.about("supernode", "list", "--format", "json")))["nodes"]
    return {int(one["node-id"]): one for one in found}


async def until_listed(cli: Cli, count: int, **values: object) -> list[int]:
    """Waits until so many nodes are listed with these values; their ids."""
    async with asyncio.timeout(SOON):
        while True:
            nodes = (await listed(cli)).items()
            found = [one for one, told in nodes if all(told.get(name) == value for name, value in values.items())]
            if len(found) == count:
                return found
            await asyncio.sleep(0.5)


def turned_away(world: World) -> set[int]:
    """The nodes whose calls were refused because they are none any more."""
    lines = [line for line in world.audited() if line["status"] == "denied"]
    return {line["node_id"] for line in lines if "was unregistered" in str(line.get("reason"))}


async def test_a_stranger_is_held_approved_and_removed(keycloak: Keycloak, tmp_path: Path) -> None:
    async with World(tmp_path / "world", keycloak, "--unknown-supernodes", "hold", executor=False) as world:
        admin, viewer = OurCli(world, tmp_path / "admin"), OurCli(world, tmp_path / "viewer")
        await admin.log_in(keycloak, "admin")
        await viewer.log_in(keycloak, "viewer")
        roles = [node(world, release, tmp_path / release) for release in RELEASES]
        try:
            for role in roles:
                role.start()
            held = await until_listed(admin, len(roles), held=True)
            refused = await viewer.about("supernode", "approve", str(held[0]))
            assert refused.code != 0
            assert "nodes.manage" in refused.output
            assert "waits for approval" in good(await viewer.about("supernode", "list"))
            for node_id in held:
                good(await admin.about("supernode", "approve", str(node_id)))
            assert sorted(await until_listed(admin, len(roles), status="online")) == sorted(held)
            assert all(role.running for role in roles), [role.log_tail() for role in roles]
            again = await admin.about("supernode", "approve", str(held[0]))
            assert "waits for approval" in again.output
            assert again.code != 0

            for node_id in held:
                good(await admin.about("supernode", "unregister", str(node_id)))
            await until(lambda: set(held) <= turned_away(world), "each node was told that it is out")
            assert await listed(admin) == {}
            lines = [line for line in world.audited() if line["event"]["action"] == "Control.RegisterNode"]
            done = {(line["actor"]["description"], line["node_id"]) for line in lines if line["status"] == "completed"}
            assert done == {("admin", node_id) for node_id in held}
            assert ("viewer", "denied") in {(line["actor"]["description"], line["status"]) for line in lines}
        finally:
            for role in roles:
                print(f"----- {role.name} -----\n{role.log_tail(20)}")
                await role.stop(10)


@pytest.mark.parametrize("release", ["1.20.0"])
async def test_a_list_of_keys_as_early_stock_has_it(release: str, keycloak: Keycloak, tmp_path: Path) -> None:
    """One whose key is on the list comes in, one whose key is not ends."""
    files = []
    for name in ("on-the-list", "not-there"):
        key = generate_key("P-384")
        private, public = tmp_path / name, tmp_path / f"{name}.pub"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        files.append((private, public))
    keys = tmp_path / "keys.csv"
    keys.write_bytes(files[0][1].read_bytes() + b" site@berlin\n")
    async with World(tmp_path / "world", keycloak, "--auth-list-public-keys", str(keys), executor=False) as world:
        admin = OurCli(world, tmp_path / "admin")
        await admin.log_in(keycloak, "admin")
        roles = [
            node(
                world,
                release,
                tmp_path / f"node-{index}",
                *("--auth-supernode-private-key", str(private), "--auth-supernode-public-key", str(public)),
            )
            for index, (private, public) in enumerate(files)
        ]
        try:
            for role in roles:
                role.start()
            await until(lambda: not roles[1].running, "the node that is not on the list has ended")
            await until_listed(admin, 1, status="online")
            assert roles[0].running
            assert len(await listed(admin)) == 1
        finally:
            for role in roles:
                print(f"----- {role.name} -----\n{role.log_tail(20)}")
                await role.stop(10)
