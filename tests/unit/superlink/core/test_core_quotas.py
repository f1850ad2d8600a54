"""What an account may have at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from core_world import World, answer, instruct, records, world
from trellis_superlink.core.errors import OverQuota
from trellis_superlink.core.principals import NO_ACCOUNT, SYSTEM, Principal
from trellis_superlink.core.quotas import Limits, kept
from trellis_superlink.core.runs import Outcome

OTHER = Principal.account("other", "other")


async def parts(size: int, times: int) -> AsyncIterator[bytes]:
    for _ in range(times):
        yield b"m" * size


async def in_use(w: World) -> int:
    return await w.core._ground.db.read(lambda conn: kept(conn, NO_ACCOUNT.id))


async def test_so_many_runs_at_once_and_others_are_not_asked(tmp_path: Path) -> None:
    async with world(tmp_path, limits=Limits(runs=2)) as w:
        first, _ = await w.submit(), await w.submit()
        with pytest.raises(OverQuota, match="2 unfinished runs"):
            await w.submit()
        await w.core.runs.start(OTHER, w.fab, override_config={})
        assert len(await w.core.runs.list(SYSTEM)) == 3
        await w.core.runs.stop(NO_ACCOUNT, first.run_id)
        await w.submit()


async def test_a_fab_is_refused_before_it_is_stored_and_the_same_again_is_free(tmp_path: Path) -> None:
    async with world(tmp_path, limits=Limits(bytes=1)) as w:
        with pytest.raises(OverQuota, match="may keep 1"):
            await w.submit()
        assert await w.core.runs.list(SYSTEM) == []
    async with world(tmp_path, limits=Limits(bytes=len(w.fab))) as w:
        await w.submit()
        await w.submit()
        assert await in_use(w) == len(w.fab)


async def test_messages_count_until_they_are_done_with(tmp_path: Path) -> None:
    big = 200_000  # more than goes into a row
    async with world(tmp_path, limits=Limits(bytes=3 * big)) as w:
        who, _work, _stay = await w.running()
        one, two = await w.node(), await w.node()
        base = await in_use(w)
        letters = [instruct(who.run, node.node_id, records(big)) for node in (one, two)]
        await w.push(who, letters)
        used = await in_use(w) - base
        assert big < used < big + 10_000  # one model, not two
        more = instruct(who.run, one.node_id, records(big, b"y"))
        await w.push(who, [more])
        third = instruct(who.run, one.node_id, records(big, b"z"))
        with pytest.raises(OverQuota):
            await w.core.mail.push_instructions(who, [third.full()])
        bare = await w.core.mail.push_instructions(who, [third.bare()])
        receiver = w.core.objects.receive(who, who.run)
        object_id = max(bare.missing, key=lambda each: len(third.contents[each]))
        content = third.contents[object_id]
        with pytest.raises(OverQuota):
            await receiver.part(object_id, 0, len(content), content)
        await receiver.abort()
        # A reply is taken all the same: the work is done.
        [parcel] = await w.pull(two)
        reply = answer(parcel.metadata, records(2 * big, b"r"))
        pushed = await w.core.mail.push_reply(two, reply.full())
        assert (list(pushed.refusals), list(pushed.missing)) == ([""], [])
        assert await in_use(w) > 3 * big
        await w.core.runs.finish(who, Outcome.COMPLETED, "")
        await w.rest()
        assert await in_use(w) == len(w.fab)


async def test_what_is_on_its_way_counts(tmp_path: Path) -> None:
    async with world(tmp_path, limits=Limits(bytes=10_000_000)) as w:
        who, _work, _stay = await w.running()
        node = await w.node()
        base = await in_use(w)
        letter = instruct(who.run, node.node_id, records(3_000_000))
        pushed = await w.core.mail.push_instructions(who, [letter.bare()])
        largest = max(pushed.missing, key=lambda each: len(letter.contents[each]))
        assert await w.core.objects.store(who, who.run, largest, letter.contents[largest])
        assert await in_use(w) - base == len(letter.contents[largest])


async def test_what_is_sent_at_the_same_time_counts_together(tmp_path: Path) -> None:
    """Each alone would fit."""
    big = 200_000
    async with world(tmp_path, limits=Limits(bytes=2 * big)) as w:
        who, _work, _stay = await w.running()
        node = await w.node()
        letters = [instruct(who.run, node.node_id, records(big, fill)) for fill in (b"a", b"b")]
        models = []
        for one in letters:
            missing = (await w.core.mail.push_instructions(who, [one.bare()])).missing
            models.append(max(((each, one.contents[each]) for each in missing), key=lambda each: len(each[1])))
        first, second, third = (w.core.objects.receive(who, who.run) for _ in range(3))
        (model, content), (other, other_content) = models
        await first.part(model, 0, len(content), content[:1000])
        with pytest.raises(OverQuota):
            await second.part(other, 0, len(other_content), other_content)
        await second.abort()
        with pytest.raises(OverQuota):
            await w.core.artifacts.store(who, "a.bin", parts(1000, big // 1000))
        await first.abort()  # and what is given up counts no more
        await third.part(other, 0, len(other_content), other_content)
        assert await third.finish() == [other]
        assert not w.core.objects.quotas._coming


async def test_files_that_a_run_leaves_count_for_good(tmp_path: Path) -> None:
    async with world(tmp_path, limits=Limits(bytes=100_000)) as w:
        who, _work, _stay = await w.running()
        await w.core.artifacts.store(who, "a.bin", parts(10_000, 5))
        with pytest.raises(OverQuota):
            await w.core.artifacts.store(who, "b.bin", parts(10_000, 6))
        await w.core.artifacts.store(who, "a.bin", parts(10_000, 4))  # in the first one's place
        await w.core.runs.finish(who, Outcome.COMPLETED, "")
        await w.rest()
        assert await in_use(w) == len(w.fab) + 40_000
        assert len(w.files()) == 1
