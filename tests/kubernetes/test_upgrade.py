"""From chart 0.1.0 to this one under a run that completes, back again, and gone but for the volumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from books import LEDGER, assert_kept, books
from cluster import Cluster
from container_world import RUN_SECONDS, Progress
from releases import DIGITS, FIRST, Release, left_in
from trellis_testing.control import Control, RunResult

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

NODE_UNAVAILABLE = 5  # an error reply's code (Flower 1.20-1.42)
ROUNDS = 12


@pytest.fixture(scope="module")
def first(loaded: Cluster) -> Iterator[tuple[Release, set[str]]]:
    """Chart 0.1.0, installed; what its namespace held before."""
    with loaded.namespace() as namespace:
        before = left_in(loaded, namespace)
        release = Release(loaded, namespace, "minimal", DIGITS, "old")
        release.install(FIRST)
        yield release, before


@pytest_asyncio.fixture(loop_scope="session")
async def user(first: tuple[Release, set[str]]) -> AsyncIterator[Control]:
    user = Control(f"{first[0].service('superlink')}:9093")
    yield user
    await user.close()


async def test_upgrade_under_a_run(first: tuple[Release, set[str]], user: Control) -> None:
    release, _ = first
    assert chart(release) == "trellis-0.1.0"
    run = await user.start_run(LEDGER, {"rounds": ROUNDS, "sites": 2, "pause": 0.5})
    async with Progress(run) as progress:
        await progress.reach(2)
        # Every pod is made anew: annotations are the least that does it.
        await asyncio.to_thread(release.upgrade, restarted("upgraded"))
        async with asyncio.timeout(RUN_SECONDS):
            result = await run.finished()
    assert chart(release) != "trellis-0.1.0"
    kept_or_told(result)


async def test_rollback_under_a_run(first: tuple[Release, set[str]], user: Control) -> None:
    release, _ = first
    run = await user.start_run(LEDGER, {"rounds": ROUNDS, "sites": 2, "pause": 0.5})
    async with Progress(run) as progress:
        await progress.reach(2)
        await asyncio.to_thread(release.rollback, 1)
        async with asyncio.timeout(RUN_SECONDS):
            result = await run.finished()
    assert chart(release) == "trellis-0.1.0"
    kept_or_told(result)


async def test_uninstall_leaves_the_volumes(first: tuple[Release, set[str]]) -> None:
    release, before = first
    await asyncio.to_thread(release.uninstall)
    claims = {f"persistentvolumeclaim/state-old-{name}-0" for name in ("superlink", "supernode-one", "supernode-two")}
    assert left_in(release.cluster, release.namespace) - before == claims


def chart(release: Release) -> str:
    """Which one the SuperLink stands in."""
    found = release.cluster.get("statefulset", f"{release.name}-superlink", release.namespace)
    return str(found["metadata"]["labels"]["helm.sh/chart"])


def restarted(why: str) -> dict[str, str]:
    roles = ("superlink", "serverapp", "supernode", "clientapp")
    return {f"{role}.podAnnotations.example": why for role in roles}


def kept_or_told(result: RunResult) -> None:
    """Sites that were away in a round are told as errors; nothing else is missing, and nothing counts twice."""
    away = {
        (page.round, partition)
        for page in books(result.log)
        for partition in (0, 1)
        if partition not in {replied for replied, _, _ in page.replies}
    }
    assert_kept(result, sites=2, rounds=ROUNDS, errors=dict.fromkeys(away, NODE_UNAVAILABLE))
