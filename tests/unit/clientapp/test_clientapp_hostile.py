"""ClientApps that get hold of their executor's socket: what they send harms nobody but themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.runner.appio_world import Hub
from unit.runner.runner_world import CLIENT, gone
from waits import until

Attend = Callable[..., Any]

HOLD = """
import gc, socket, struct, json
print("guest", os.getpid(), flush=True)
wire = next(one for one in gc.get_objects() if type(one).__name__ == "Wire")
reply = {"op": "reply", "message": {"metadata": None, "records": []}, "state": [], "runtime": 0.0, "modules": []}
"""
FINE = "return answer(message, fine=1)"


@pytest.mark.parametrize(
    "sent",
    [
        "wire.send({**reply, 'modules': [{}]})",
        "wire.send({**reply, 'modules': 5})",
        "wire.send({'op': 'nothing'})",
        "wire.send({})",
        "wire.send({'op': 'error', 'code': 'x', 'reason': 3})",
        "wire.sock.sendall(b'\\xff' * 8)",
        "wire.sock.sendall(struct.pack('>I', 2) + b'[]')",
        "head = b'[' * 100_000; wire.sock.sendall(struct.pack('>I', len(head)) + head)",
        "head = json.dumps({'buffers': [1 << 62]}).encode(); wire.sock.sendall(struct.pack('>I', len(head)) + head)",
        "head = json.dumps({'buffers': [-1]}).encode(); wire.sock.sendall(struct.pack('>I', len(head)) + head)",
    ],
)
async def test_frames_that_make_no_sense(hub: Hub, attend: Attend, tmp_path: Path, sent: str) -> None:
    hostile = hub.app(tmp_path / "hostile", CLIENT, HOLD + sent + "\ntime.sleep(300)")
    fine = hub.app(tmp_path / "fine", CLIENT, FINE)
    async with attend():
        hub.task("t1", hostile)
        _, error, _ = hub.read((await hub.finish_of("t1")).reply)
        hub.task("t2", fine)
        _, none, _ = hub.read((await hub.finish_of("t2")).reply)
        assert error is not None
        assert none is None
        guest = int(re.findall(r"guest (\d+)", hub.log_of("t1"))[0])
        await until(lambda: gone(guest), "the guest's end")


async def test_a_reply_to_another_message_is_told_as_the_apps_fault(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    body = "reply = answer(message)\nreply.metadata.__dict__['_reply_to_message_id'] = 'b' * 64\nreturn reply"
    app = hub.app(tmp_path / "app", CLIENT, body)
    async with attend():
        hub.task("t1", app)
        _, error, _ = hub.read((await hub.finish_of("t1")).reply)
    assert error is not None
    assert error.code == 2
    assert "answers another message" in error.reason


async def test_an_endless_reason_is_cut(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(tmp_path / "app", CLIENT, "raise ValueError('x' * 50_000_000)")
    async with attend():
        hub.task("t1", app)
        _, error, _ = hub.read((await hub.finish_of("t1")).reply)
    assert error is not None
    assert len(error.reason) == 4000
