"""Runs and their executors: life, claims, loss, notices, retention, state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from core_world import World, instruct, records, world
from sqlalchemy import func, select
from trellis_superlink.core.errors import (
    BadConfig,
    BadFab,
    NoFederation,
    NotFound,
    RunFinished,
    RunOver,
    RunUnfinished,
    Unauthenticated,
)
from trellis_superlink.core.executors import MAX_STARTS, Drop, Order, Stop, Work
from trellis_superlink.core.logs import LogLine
from trellis_superlink.core.parcels import State
from trellis_superlink.core.principals import NO_ACCOUNT, SYSTEM, Principal
from trellis_superlink.core.runs import Outcome, Status
from trellis_superlink.store.tables import metadata
from trellis_wire.records import deflate


async def order(stay: object) -> Order:
    async with asyncio.timeout(5):
        found: Order = await anext(stay.orders())  # type: ignore[attr-defined]
        return found


async def wait_for_status(w: World, run_id: int, status: Status) -> None:
    async with asyncio.timeout(5):
        while (await w.details(run_id)).status is not status:
            await asyncio.sleep(0.01)


async def test_the_life_of_a_run(w: World) -> None:
    who, work, _stay = await w.running()
    run_id = work.run.run_id
    run = await w.core.runs.get(NO_ACCOUNT, run_id)
    assert (run.status, run.fab_id, run.fab_version) == (Status.RUNNING, "somebody/small", "1.2.3")
    assert (await w.core.runs.fab(who, run.fab_hash)).content == w.fab
    assert await w.core.runs.finish(who, Outcome.COMPLETED, "done") == []
    assert await w.core.runs.finish(who, Outcome.FAILED, "again") == []
    run = await w.core.runs.get(NO_ACCOUNT, run_id)
    assert (run.status, run.outcome, run.details) == (Status.FINISHED, Outcome.COMPLETED, "done")
    assert [entry.status for entry in await w.core.runs.history(NO_ACCOUNT, run_id)] == list(Status)
    with pytest.raises(RunFinished):
        await w.core.runs.stop(NO_ACCOUNT, run_id)
    with pytest.raises(RunOver):
        await w.core.runs.running(who)
    [listed] = await w.core.runs.list(NO_ACCOUNT)
    assert listed == run
    with pytest.raises(NotFound):
        await w.core.runs.get(Principal.account("somebody else"), run_id)
    assert await w.core.runs.list(Principal.account("somebody else")) == []


async def test_bad_submissions_change_nothing(w: World) -> None:
    for fab in (b"", b"no zip", w.fab[:-10]):
        with pytest.raises(BadFab):
            await w.core.runs.start(NO_ACCOUNT, fab, override_config={})
    with pytest.raises(BadConfig, match="nonsense"):
        await w.core.runs.start(NO_ACCOUNT, w.fab, override_config={"nonsense": 1})
    with pytest.raises(NoFederation, match="elsewhere"):
        await w.core.runs.start(NO_ACCOUNT, w.fab, override_config={}, federation="elsewhere")
    assert await w.core.runs.list(SYSTEM) == []


async def test_runs_survive_a_restart(w: World) -> None:
    pending = await w.core.runs.start(NO_ACCOUNT, w.fab, override_config={"rounds": 7})
    await w.reopen()
    stay = await w.attend()
    work = await order(stay)
    assert isinstance(work, Work)
    assert work.run.run_id == pending.run_id
    assert work.run.override_config == {"rounds": 7}
    who = await w.core.runs.authenticate(work.token)
    await w.core.runs.running(who)
    await w.reopen()
    assert (await w.core.runs.authenticate(work.token)).run_id == pending.run_id
    stay = await w.attend(holding=[work.token, "an old token"])
    assert await order(stay) == Drop("an old token")
    w.forward(29)
    stay.alive()
    w.forward(29)
    assert (await w.details(pending.run_id)).status is Status.RUNNING
    await w.core.runs.finish(who, Outcome.COMPLETED, "")


async def test_an_executor_that_is_lost_fails_its_run(w: World) -> None:
    node = await w.node()
    who, work, stay = await w.running()
    stay.leave()
    w.forward(31)
    await wait_for_status(w, work.run.run_id, Status.FINISHED)
    run = await w.details(work.run.run_id)
    assert run.outcome is Outcome.FAILED
    assert "e1 was lost" in run.details
    assert any("e1 was lost" in entry.text for entry in await w.core.logs.read(NO_ACCOUNT, run.run_id))
    with pytest.raises(RunOver):
        await w.core.mail.push_instructions(who, [instruct(run.run_id, node.node_id, records()).full()])


async def test_a_run_whose_executor_is_lost_before_its_app_runs_is_handed_out_again(w: World) -> None:
    run = await w.submit()
    for attempt in range(MAX_STARTS):
        stay = await w.attend(f"e{attempt}")
        work = await order(stay)
        assert isinstance(work, Work)
        assert work.run.run_id == run.run_id
        stay.leave()
        w.forward(31)
        last = attempt == MAX_STARTS - 1
        await wait_for_status(w, run.run_id, Status.FINISHED if last else Status.PENDING)
    assert (await w.details(run.run_id)).details.startswith("The executor e2 was lost")


async def test_a_silent_executor_is_lost_though_its_stream_is_open(w: World) -> None:
    _who, work, _stay = await w.running()
    w.forward(31)
    await asyncio.sleep(0)
    w.forward(0)
    await wait_for_status(w, work.run.run_id, Status.FINISHED)
    assert w.core.executors.attending() == []


async def test_after_a_restart_claims_wait_for_their_executors(w: World) -> None:
    _who, work, _stay = await w.running()
    await w.reopen()
    w.forward(20)
    assert (await w.details(work.run.run_id)).status is Status.RUNNING
    w.forward(11)
    await wait_for_status(w, work.run.run_id, Status.FINISHED)


async def test_an_executor_that_comes_back_empty_handed(w: World) -> None:
    stay = await w.attend()
    run = await w.submit()
    first = await order(stay)
    assert isinstance(first, Work)
    # The order never reached it: it gets the run again under a new token, and the old one opens nothing.
    stay = await w.attend()
    second = await order(stay)
    assert isinstance(second, Work)
    assert second.run.run_id == run.run_id
    with pytest.raises(Unauthenticated):
        await w.core.runs.authenticate(first.token)
    # The app ran and is gone with its process.
    await w.core.runs.running(await w.core.runs.authenticate(second.token))
    await w.attend()
    await wait_for_status(w, run.run_id, Status.FINISHED)
    assert "process was lost" in (await w.details(run.run_id)).details


async def test_stop_reaches_the_executor(w: World) -> None:
    who, work, stay = await w.running()
    await w.core.runs.stop(NO_ACCOUNT, work.run.run_id)
    assert await order(stay) == Stop(work.token)
    run = await w.details(work.run.run_id)
    assert (run.outcome, run.details) == (Outcome.STOPPED, "Stopped by user.")
    assert await w.core.runs.finish(who, Outcome.FAILED, "killed") == []
    assert (await w.details(work.run.run_id)).outcome is Outcome.STOPPED
    # One that was away meanwhile hears it when it comes back.
    again = await w.attend(holding=[work.token])
    assert await order(again) == Drop(work.token)


async def test_work_handed_back_is_pending_again(w: World) -> None:
    stay = await w.attend("e1", slots=1)
    run = await w.submit()
    work = await order(stay)
    assert isinstance(work, Work)
    await stay.handed_back(work.token)
    stay.leave()
    assert (await w.details(run.run_id)).status is Status.PENDING
    with pytest.raises(Unauthenticated):
        await w.core.runs.authenticate(work.token)
    other = await w.attend("e2", slots=1)
    again = await order(other)
    assert isinstance(again, Work)
    await w.core.runs.running(await w.core.runs.authenticate(again.token))
    await other.handed_back(again.token)
    run = await w.details(run.run_id)
    assert run.outcome is Outcome.FAILED
    assert "was stopped" in run.details


async def test_work_goes_where_slots_are_free(w: World) -> None:
    one, two = await w.attend("e1", slots=1), await w.attend("e2", slots=2)
    submitted = [await w.submit() for _ in range(4)]
    got = [await order(stay) for stay in (one, two, two)]
    assert {each.run.run_id for each in got if isinstance(each, Work)} == {run.run_id for run in submitted[:3]}
    assert (await w.details(submitted[3].run_id)).status is Status.PENDING
    one.free_slots(1)
    last = await order(one)
    assert isinstance(last, Work)
    assert last.run.run_id == submitted[3].run_id


async def test_pending_runs_say_that_no_executor_is_there(w: World) -> None:
    run = await w.submit()
    async with asyncio.timeout(5):
        while not w.core._ground.deadlines._due.get("executors/absent"):
            await asyncio.sleep(0.01)
    w.forward(9)
    await w.rest()
    assert (await w.details(run.run_id)).details == ""
    w.forward(2)
    await w.rest()
    assert "No executor" in (await w.details(run.run_id)).details
    assert any("flwr-serverapp" in entry.text for entry in await w.core.logs.read(NO_ACCOUNT, run.run_id))
    stay = await w.attend()
    work = await order(stay)
    assert isinstance(work, Work)
    assert work.run.details == ""


async def test_the_state_of_a_run_is_kept(w: World) -> None:
    who, work, _stay = await w.running()
    bundle = deflate(records(200_000))
    contents = {key: bytes(source.content()) for key, source in bundle.objects.items()}
    missing = await w.core.runs.finish(who, Outcome.COMPLETED, "", state=State(bundle.tree))
    assert set(missing) == set(contents)
    assert (await w.details(work.run.run_id)).status is Status.RUNNING
    for object_id in missing:
        assert await w.core.objects.store(who, work.run.run_id, object_id, contents[object_id])
    for object_id, content in contents.items():
        assert await w.core.objects.read(who, work.run.run_id, object_id) == content
    assert await w.core.runs.finish(who, Outcome.COMPLETED, "", state=State(bundle.tree)) == []
    assert (await w.details(work.run.run_id)).status is Status.FINISHED
    await w.rest()
    assert await w.stored() == (len(contents), 0)
    with pytest.raises(RunOver):  # kept, but no more for this executor
        await w.core.objects.read(who, work.run.run_id, bundle.tree.object_id)


async def test_retention_forgets_everything_of_a_run(tmp_path: Path) -> None:
    async with world(tmp_path, retention=3600.0) as w:
        node = await w.node()
        who, work, _stay = await w.running()
        await w.push(who, [instruct(work.run.run_id, node.node_id, records(1000))])
        await w.core.logs.append(who, [LogLine(0, "INFO", "hello\n")], 1)

        async def model() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"m" * 10_000

        await w.core.artifacts.store(who, "model.bin", model())
        with pytest.raises(RunUnfinished):
            await w.core.artifacts.list(NO_ACCOUNT, work.run.run_id)
        bundle = deflate(records(10))
        state = State(bundle.tree, {key: bytes(source.content()) for key, source in bundle.objects.items()})
        await w.core.runs.finish(who, Outcome.COMPLETED, "", state=state)
        [listed] = await w.core.artifacts.list(NO_ACCOUNT, work.run.run_id)
        assert (listed.name, listed.size) == ("model.bin", 100_000)
        assert bytes(await w.core.artifacts.read(NO_ACCOUNT, work.run.run_id, "model.bin", 5, 3)) == b"mmm"
        w.forward(3000)
        await w.rest()
        assert len(await w.core.runs.list(SYSTEM)) == 1
        w.forward(700)
        await w.rest()
        await w.rest()
        left = await w.core._ground.db.read(
            lambda conn: {
                table.name: conn.scalar(select(func.count()).select_from(table)) for table in metadata.sorted_tables
            }
        )
        assert {name for name, count in left.items() if count} <= {"nodes", "beats"}
        assert w.files() == []
