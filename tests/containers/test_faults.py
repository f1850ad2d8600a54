"""What happens to containers while a run is under way; its books (tests/crash) say whether anything was lost.

TRELLIS_FAULT_SEED=number repeats the random moments of a session, which prints its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from random import Random, SystemRandom

import grpc
import pytest
import pytest_asyncio
from books import LEDGER, assert_kept, books
from container_world import APPS, RUN_SECONDS, Progress, trained
from trellis_testing import ContainerPeer, FederationContainer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

SEED = int(os.environ.get("TRELLIS_FAULT_SEED") or SystemRandom().randrange(1_000_000))
ROUNDS, WORK = 20, 0.1  # rounds of a run, and seconds that a site works in each
AWAY = (0.1, 2.5)  # seconds that a role is paused or cut off


async def kill(peer: ContainerPeer, chance: Random) -> None:
    await asyncio.to_thread(peer.kill)
    await asyncio.to_thread(peer.start)


async def pause(peer: ContainerPeer, chance: Random) -> None:
    await asyncio.to_thread(peer.pause)
    await asyncio.sleep(chance.uniform(*AWAY))
    await asyncio.to_thread(peer.resume)


async def cut(peer: ContainerPeer, chance: Random) -> None:
    network = chance.choice(sorted(set(peer.links) - {"control"}))
    await asyncio.to_thread(peer.disconnect, network)
    await asyncio.sleep(chance.uniform(*AWAY))
    await asyncio.to_thread(peer.connect, network)


NODE_UNAVAILABLE = 5  # an error reply's code (Flower 1.20-1.42)
FAULTS = (kill, pause, cut)
ROLES = ("superlink", "serverapp", "supernode", "clientapp")


# A ServerApp that is killed ends its run (docs/limits.md): below.
@pytest.mark.parametrize("attempt", range(10))
async def test_a_fault_of_each_role(attempt: int, sites: FederationContainer) -> None:
    """Over the ten runs each role is killed, paused and cut off three times, at random moments in random order."""
    print(f"TRELLIS_FAULT_SEED={SEED}")
    chance = Random(f"{SEED} {attempt}")
    roles = chance.sample(ROLES, len(ROLES))
    rounds = sorted(chance.sample(range(1, ROUNDS - 2), len(ROLES)))
    run = await sites.run(LEDGER, {"rounds": ROUNDS, "sites": 2, "pause": WORK})
    async with Progress(run) as progress:
        for role, after in zip(roles, rounds, strict=True):
            kinds = FAULTS[1:] if role == "serverapp" else FAULTS
            fault = kinds[(attempt + ROLES.index(role)) % len(kinds)]
            peer = sites[f"{role}-{chance.randint(1, 2)}" if role in ("supernode", "clientapp") else role]
            await progress.reach(after)
            await asyncio.sleep(chance.uniform(0, 2 * WORK))  # the moment
            print(f"{fault.__name__} {peer.name} in round {progress.rounds + 1}")
            await fault(peer, chance)
        async with asyncio.timeout(RUN_SECONDS):
            assert_kept(await run.finished(), sites=2, rounds=ROUNDS)


async def test_a_killed_serverapp_fails_its_run_and_not_the_next(sites: FederationContainer) -> None:
    run = await sites.run(LEDGER, {"rounds": ROUNDS, "sites": 2, "pause": WORK})
    async with Progress(run) as progress:
        await progress.reach(3)
        await kill(sites["serverapp"], Random(SEED))
        async with asyncio.timeout(RUN_SECONDS):
            result = await run.finished()
    assert result.outcome == "failed"
    assert "executor" in result.reason, result.reason
    assert_kept(await trained(sites, LEDGER, {"rounds": 2, "sites": 2}), sites=2, rounds=2)


async def test_memory_that_runs_out_ends_the_guest_and_not_the_clientapp(sites: FederationContainer) -> None:
    peer = sites["clientapp-1"]
    started = peer.state["StartedAt"]
    peer.docker.update(mem_limit="384m", memswap_limit="384m")
    result = await trained(sites, APPS / "hungry", {"sites": 2, "hungry-site": 1})
    assert result.outcome == "completed", result.log
    assert sorted(line for line in result.log.splitlines() if line.startswith("round ")) == [
        *["round 1: fine"] * 2,
        "round 2: The ClientApp's process was ended by SIGKILL (kill -9, or no memory left).",
        "round 2: fine",
        *["round 3: fine"] * 2,
    ]
    assert peer.state["StartedAt"] == started
    peer.docker.update(mem_limit="4g", memswap_limit="4g")


async def test_a_missing_import_is_named_with_how_to_add_it(sites: FederationContainer) -> None:
    result = await trained(sites, APPS / "quadrants", {"sites": 2})
    assert result.outcome == "failed"
    assert "The app needs the module 'jax'" in result.reason
    assert "RUN pip install jax" in result.reason


# ---- told to end -----------------------------------------------------------------------------------------------------


async def test_told_to_end_each_role_ends_in_order_and_the_run_goes_on(sites: FederationContainer) -> None:
    """SIGTERM as `docker stop` sends it, one role after the other; exit code 0 within the grace time."""
    run = await sites.run(LEDGER, {"rounds": 10, "sites": 2, "pause": 0.3})
    async with Progress(run) as progress:
        for after, role in ((1, "superlink"), (3, "supernode-1"), (5, "serverapp")):
            await progress.reach(after)
            assert await sites[role].stop(grace=35) == 0, sites[role].log()[-2000:]
            await asyncio.to_thread(sites[role].start)
        async with asyncio.timeout(RUN_SECONDS):
            result = await run.finished()  # the ServerApp finished what it had begun
    # A SuperNode that ended in order is away, which is told at once; nothing that it had begun is lost.
    away = {page.round for page in books(result.log) if (-1, 0, NODE_UNAVAILABLE) in page.replies}
    assert_kept(result, sites=2, rounds=10, errors={(number, 0): NODE_UNAVAILABLE for number in away})

    async def both_are_back() -> bool:
        return len(await sites.online()) == 2

    await sites.until(both_are_back, 60, "both sites are online")
    assert_kept(await trained(sites, LEDGER, {"rounds": 2, "sites": 2}), sites=2, rounds=2)


async def test_work_that_is_handed_back_is_done_by_another(sites: FederationContainer) -> None:
    run = await sites.run(LEDGER, {"rounds": 2, "sites": 2, "pause": 4.0})
    async with Progress(run) as progress:
        await progress.reach(1)
        assert await sites["clientapp-1"].stop(grace=35) == 0  # in the middle of round 2
        other = await asyncio.to_thread(sites.add_clientapp, 1)
        async with asyncio.timeout(RUN_SECONDS):
            assert_kept(await run.finished(), sites=2, rounds=2)
    assert other.log().count('"Answered"') == 1
    await asyncio.to_thread(sites["clientapp-1"].start)


# ---- no room ---------------------------------------------------------------------------------------------------------

FILL = "for size in 64k 1; do dd if=/dev/zero of=/app/state/ballast bs=$size oflag=append conv=notrunc 2>&1; done"


@pytest_asyncio.fixture(loop_scope="session")
async def cramped(images: None) -> AsyncIterator[FederationContainer]:
    """One site; the SuperLink's state has 48 MiB."""
    small = {"type": "tmpfs", "device": "tmpfs", "o": "size=48m,mode=1777"}
    async with FederationContainer(1, volume_options={"superlink": small}) as federation:
        yield federation


async def refused_when_full(federation: FederationContainer, config: Mapping[str, float]) -> grpc.aio.AioRpcError:
    """Filled until no run fits any more: what the SuperLink gives up half written makes room once more."""
    for _ in range(20):
        federation["superlink"].exec("sh", "-c", FILL)
        try:
            await federation.run(LEDGER, config)
        except grpc.aio.AioRpcError as refusal:
            return refusal
    raise AssertionError("A full volume took twenty runs.")


async def test_a_full_volume_is_waited_out(cramped: FederationContainer) -> None:
    superlink = cramped["superlink"]
    config = {"rounds": 12, "sites": 1, "size": 20_000, "pause": 0.1}
    run = await cramped.run(LEDGER, config)
    async with Progress(run) as progress:
        await progress.reach(2)
        refusal = await refused_when_full(cramped, config)
        assert refusal.code() is grpc.StatusCode.UNAVAILABLE
        assert "full" in (refusal.details() or "")
        before = progress.rounds
        assert before < 12
        assert await run.status() == "running"
        superlink.exec("rm", "/app/state/ballast")
        async with asyncio.timeout(RUN_SECONDS):
            assert_kept(await run.finished(), sites=1, rounds=12)
