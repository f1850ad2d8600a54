"""A pod of each role is deleted while a run is under way; the run completes, and its books say that all was kept."""

from __future__ import annotations

import asyncio

import pytest
from books import LEDGER, assert_kept, books
from container_world import RUN_SECONDS, Progress
from releases import Release, is_ready
from trellis_testing.control import Control
from waits import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

ROUNDS = 8
NODE_UNAVAILABLE = 5  # an error reply's code (Flower 1.20-1.42)


@pytest.mark.parametrize("role", ["superlink", "serverapp", "supernode-one", "clientapp-one"])
async def test_a_deleted_pod(minimal: Release, control: Control, role: str) -> None:
    component, _, site = role.partition("-")
    (before,) = minimal.pods(component, site)
    uid = identity(minimal, before)
    run = await control.start_run(LEDGER, {"rounds": ROUNDS, "sites": 2, "pause": 0.4})
    async with Progress(run) as progress:
        await progress.reach(2)
        await asyncio.to_thread(delete, minimal, before)
        async with asyncio.timeout(RUN_SECONDS):
            result = await run.finished()
    # A SuperNode that ends in order says so: what it would have done meanwhile is told as an error, none of it is lost.
    away = {page.round for page in books(result.log) if (-1, 0, NODE_UNAVAILABLE) in page.replies}
    assert not away or component == "supernode"
    assert_kept(result, sites=2, rounds=ROUNDS, errors={(number, 0): NODE_UNAVAILABLE for number in away})

    await asyncio.to_thread(wait_until, lambda: renewed(minimal, component, site, uid), f"{role} has a new pod", 120)
    async with asyncio.timeout(120):
        while list((await control.nodes()).values()).count("online") < 2:
            await asyncio.sleep(0.5)


def delete(release: Release, pod: str) -> None:
    release.cluster.kubectl("-n", release.namespace, "delete", "pod", pod, "--wait=false")


def identity(release: Release, pod: str) -> str:
    return str(release.cluster.get("pod", pod, release.namespace)["metadata"]["uid"])


def renewed(release: Release, component: str, site: str, uid: str) -> bool:
    """Whether another pod is ready in place of this one, and that one is gone."""
    found = release.all_pods(component, site)
    return [pod["metadata"]["uid"] != uid and is_ready(pod) for pod in found] == [True]
