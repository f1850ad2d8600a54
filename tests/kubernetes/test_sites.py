"""A site of its own, in another namespace than the SuperLink: it joins through the published Fleet address only."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from arrows import PORTS, PROBE, PYTHON
from books import LEDGER, assert_kept
from cluster import HOST_ADDRESS, NODE_ADDRESS, Cluster
from container_world import RUN_SECONDS
from relay import relayed
from releases import DIGITS, Release, left_in
from trellis_testing.control import Control

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

FLEET, CONTROL = 31092, 31093  # as ci/server-only-values.yaml and ci/site-only-values.yaml say


@dataclass(frozen=True)
class Apart:
    """Both installations, and what the server's namespace held before."""

    server: Release
    site: Release
    before: set[str]
    ca: Path


@pytest.fixture(scope="module")
def apart(loaded: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    with loaded.namespace() as here, loaded.namespace() as there:
        before = left_in(loaded, here)
        names = {"tls.names[0]": HOST_ADDRESS, "tls.names[1]": NODE_ADDRESS}
        server = Release(loaded, here, "server-only", DIGITS | names, "server")
        server.install()
        ca = tmp_path_factory.mktemp("server") / "ca.crt"
        ca.write_bytes(server.secret("superlink-tls", "ca.crt"))
        known = {"network-ca": {"ca.crt": ca.read_bytes()}, "hospital-db": {"password": b"of-the-site"}}
        loaded.apply(*(secret(name, data) for name, data in known.items()), namespace=there)
        to = {"externalSuperlink.address": f"{HOST_ADDRESS}:{FLEET}"}
        with published(FLEET), published(CONTROL):
            site = Release(loaded, there, "site-only", DIGITS | to, "site")
            site.install()
            yield Apart(server, site, before, ca)


def published(port: int) -> AbstractContextManager[None]:
    """At this machine's address, as a load balancer would."""
    return relayed((HOST_ADDRESS, port), (NODE_ADDRESS, port))


def secret(name: str, data: dict[str, bytes]) -> dict[str, object]:
    encoded = {key: b64encode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


async def test_it_trains(apart: Apart) -> None:
    """Submitted from outside, through the published Control port, over TLS."""
    user = Control(f"{NODE_ADDRESS}:{CONTROL}", apart.ca)
    try:
        async with asyncio.timeout(RUN_SECONDS):
            run = await user.start_run(LEDGER, {"rounds": 3, "sites": 1})
            assert_kept(await run.finished(), sites=1, rounds=3)
    finally:
        await user.close()


async def test_the_site_reaches_nothing_else(apart: Apart) -> None:
    cluster = apart.server.cluster
    (superlink,) = apart.server.pods("superlink")
    address = cluster.get("pod", superlink, apart.server.namespace)["status"]["podIP"]
    service = apart.server.service("superlink")
    targets = [f"{host}:{port}" for host in (address, service) for port in PORTS]
    targets += [f"{host}:{port}" for host in (HOST_ADDRESS, NODE_ADDRESS) for port in (FLEET, CONTROL)]
    reached: dict[str, set[str]] = {"supernode": {f"{HOST_ADDRESS}:{FLEET}"}, "clientapp": set()}
    for role, expected in reached.items():
        (pod,) = apart.site.pods(role, "berlin")
        said = cluster.inside(apart.site.namespace, pod, PYTHON, "-I", "-c", PROBE, *targets)
        answers = json.loads(said.splitlines()[-1])
        assert {target for target, good in zip(targets, answers, strict=True) if good} == expected


async def test_nobody_reaches_the_site(apart: Apart) -> None:
    """Not even from the server's pods."""
    cluster = apart.server.cluster
    targets = []
    for role in ("supernode", "clientapp"):
        (pod,) = apart.site.pods(role, "berlin")
        address = cluster.get("pod", pod, apart.site.namespace)["status"]["podIP"]
        targets += [f"{address}:{port}" for port in PORTS]
    for role in ("superlink", "serverapp"):
        (pod,) = apart.server.pods(role)
        said = cluster.inside(apart.server.namespace, pod, PYTHON, "-I", "-c", PROBE, *targets)
        assert not any(json.loads(said.splitlines()[-1]))


async def test_what_uninstalling_leaves(apart: Apart) -> None:
    """The volume, and the CAs: whoever installs again is known again."""
    await asyncio.to_thread(apart.server.uninstall)
    left = left_in(apart.server.cluster, apart.server.namespace) - apart.before
    assert left == {"persistentvolumeclaim/state-server-superlink-0", "secret/server-authorities"}
