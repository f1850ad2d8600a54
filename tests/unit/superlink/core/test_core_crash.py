"""kill -9 in the middle of a push, again and again: what was acknowledged is there, and the push can be finished."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from pathlib import Path

import pytest
from core_world import answer, instruct, records, world
from trellis_superlink.core.errors import RunOver
from trellis_superlink.core.principals import NO_ACCOUNT, SYSTEM

CHILD = """
import asyncio, pickle, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from core_world import *

async def main():
    core = await Core.open(CoreConfig(database=Path(sys.argv[1]) / "superlink.db"))
    who, run_id, letters = pickle.loads((Path(sys.argv[1]) / "plan").read_bytes())
    pushed = await core.mail.push_instructions(who, [each.bare() for each in letters])
    print("pushed", flush=True)
    contents = {k: v for each in letters for k, v in each.contents.items()}
    for object_id in pushed.missing:
        assert await core.objects.store(who, run_id, object_id, contents[object_id])
        print(object_id, flush=True)
    print("done", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [0, 2, 5])
async def test_killed_in_the_middle_of_a_push(tmp_path: Path, after: int) -> None:
    async with world(tmp_path) as w:
        node = await w.node()
        who, work, _stay = await w.running()
        run_id = work.run.run_id
        token = work.token
        content = {
            **records(300_000, fill=b"a"),
            **{f"more{i}": record for i, record in enumerate(records(100_000 + i)["arrays"] for i in range(2))},
        }
        letters = [instruct(run_id, node.node_id, content, group=str(i)) for i in range(2)]
        (tmp_path / "plan").write_bytes(pickle.dumps((who, run_id, letters)))
        key = w.keys[node.node_id]
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path),
        str(Path(__file__).parent),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    told = [(await child.stdout.readline()).decode().strip() for _ in range(after + 1)]
    os.kill(child.pid, signal.SIGKILL)
    told += (await child.stdout.read()).decode().split()
    await child.wait()
    stored = set(told) - {"pushed", "done"}

    async with world(tmp_path) as w:
        again = await w.core.runs.authenticate(token)
        node = await w.core.nodes.authenticate(node.node_id, key)
        for object_id in stored:
            assert await w.core.objects.expected(SYSTEM, run_id, object_id) == "here"
        pushed = await w.core.mail.push_instructions(again, [each.bare() for each in letters])
        assert not stored & set(pushed.missing)
        contents = {k: v for each in letters for k, v in each.contents.items()}
        for object_id in pushed.missing:
            assert await w.core.objects.store(again, run_id, object_id, contents[object_id])
        got = await w.pull(node, limit=5)
        assert {parcel.metadata.message_id for parcel in got} == {each.id for each in letters}
        for object_id, expected in contents.items():
            assert await w.core.objects.read(node, run_id, object_id) == expected
        for parcel in got:
            reply = answer(parcel.metadata, records())
            assert (await w.core.mail.push_reply(node, reply.full())).refusals == [""]
        got_replies = [reply async for reply in w.core.mail.replies(again, [each.id for each in letters])]
        assert len(got_replies) == 2
        await w.core.runs.stop(NO_ACCOUNT, run_id)
        with pytest.raises(RunOver):
            await w.core.mail.push_reply(node, answer(letters[0].meta, records()).full())
        await w.rest()
        assert await w.stored() == (0, 0)
        assert w.files() == []
