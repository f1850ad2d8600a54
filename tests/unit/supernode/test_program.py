"""The program as a process: killed and started again, asked to stop, with TLS, with wrong flags."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from node_world import Hand, World, model, token, world
from trellis_kit.federation import free_ports
from trellis_wire.pb.appio import appio_pb2
from waits import until

# ---- kill -9 ---------------------------------------------------------------------------------------------------------


async def test_an_accepted_instruction_survives_a_kill(tmp_path: Path) -> None:
    async with world(tmp_path, inline=False) as w:  # stock delivers only once
        node = w.process()
        instruction = await w.link.instruct(model(b"m" * 200_000))
        await until(lambda: instruction.confirmed, "the confirmation")
        await node.kill()
        w.process()
        hand = await w.hand()
        await hand.finish(await hand.work())
        await w.answered(instruction)
        assert instruction.delivered == 1


async def test_a_kill_between_objects_keeps_those_that_came(tmp_path: Path) -> None:
    async with world(tmp_path, inline=False) as w:
        node = w.process()
        instruction = await w.link.instruct(model(b"a" * (6 << 20)))  # two chunks
        # They come in post-order, so the arrival of the last means that the others came: hold it back.
        order = instruction.tree.post_order()
        first, last = order[0], order[-1]
        w.link.late = {last}
        here = tmp_path / "state" / "objects" / str(instruction.metadata.run_id) / first
        await until(here.exists, "the first chunk")
        await until(
            lambda: any(one.object_id == last for one in w.link.called("PullObject")), "the last to be asked for"
        )
        await node.kill()
        assert not instruction.confirmed
        w.link.late = set()
        w.process()
        hand = await w.hand()
        work = await hand.work()
        await hand.read(work)
        await hand.finish(work)
        await w.answered(instruction)
        assert sum(one.object_id == first for one in w.link.called("PullObject")) == 1


async def test_an_executor_goes_on_over_a_kill_of_its_node(tmp_path: Path) -> None:
    async with world(tmp_path, inline=False) as w:
        node = w.process()
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        await until(lambda: instruction.confirmed, "the confirmation")
        await node.kill()
        w.process()
        other = await w.hand("other")  # is there first, but the work is in the other's hands
        await asyncio.wait_for(hand.attend(), 10)
        await hand.finish(work, count=1)
        await w.answered(instruction)
        assert other.orders.empty()
        assert hand.orders.empty()
        second = await w.link.instruct()
        for each in (hand, other):
            await each.report(free_slots=int(each is other))
        work = await other.work()
        assert await other.state(work) == 1
        await other.finish(work)
        await w.answered(second)


async def test_a_reply_and_its_state_survive_a_kill_and_count_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        node = w.process()
        hand = await w.hand()
        first = await w.link.instruct()
        await hand.finish(await hand.work(), count=1)
        await w.answered(first)
        second = await w.link.instruct()
        work = await hand.work()
        await w.link.stop()
        assert await hand.finish(work, model(b"r" * 300_000), count=2)  # it is the node's now
        await node.kill()
        w.process()
        await w.link.start()
        await w.answered(second)
        assert set(w.link.pushes.values()) == {1}
        third = await w.link.instruct()
        await asyncio.wait_for(hand.attend(), 10)
        work = await hand.work()
        assert await hand.state(work) == 2
        await hand.finish(work)
        await w.answered(third)


# ---- the end ---------------------------------------------------------------------------------------------------------


async def test_sigterm_lets_the_work_end_and_says_goodbye(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        node = w.process()
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        node.signal(signal.SIGTERM)
        await hand.finish(work)
        assert await node.ended() == 0
        assert len(w.link.answers(instruction)) == 1
        assert not w.link.online
        assert '"message": "The SuperNode ended in order"' in node.log


async def test_sigterm_without_a_superlink(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.link.stop()
        node = w.process()
        await w.hand()
        assert await node.terminate() == 0
        await w.link.start()


# ---- the way there ---------------------------------------------------------------------------------------------------


async def round_trip(w: World) -> None:
    hand = await w.hand()
    instruction = await w.link.instruct()
    await hand.finish(await hand.work())
    await w.answered(instruction)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine, which is its own CA."""
    key, cert = folder / "server.key", folder / "server.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost"]
    argv += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(argv, check=True, capture_output=True)
    return cert, key


async def test_tls_on_both_sides(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    async with world(tmp_path) as w:
        await w.link.stop()
        await w.link.start(credentials)
        secret = tmp_path / "join-token"
        secret.write_text("sesame")
        flags = ["--root-certificates", str(cert), "--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]
        node = w.process(*flags, "--join-token-file", str(secret), insecure=False)
        roots = grpc.ssl_channel_credentials(cert.read_bytes())
        hand = Hand(w.appio, join_token="sesame", credentials=roots)
        w.hands.append(hand)
        await asyncio.wait_for(hand.attend(), 10)
        instruction = await w.link.instruct()
        work = await hand.work()
        await hand.stub.GetFab(appio_pb2.GetFabRequest(fab_hash=work.run.fab_hash), metadata=token(work))
        await hand.finish(work)
        await w.answered(instruction)
        assert await node.terminate() == 0


# ---- operations ------------------------------------------------------------------------------------------------------


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_the_operations_port_tells_how_it_is(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.link.stop()
        (port,) = free_ports(1)
        node = w.process("--ops-address", f"127.0.0.1:{port}")
        await w.hand()
        url = f"http://127.0.0.1:{port}"
        status, why = await asyncio.to_thread(get, f"{url}/readyz")
        assert (status, "SuperLink" in why) == (503, True)
        assert (await asyncio.to_thread(get, f"{url}/livez"))[0] == 200
        await w.link.start()
        await until(lambda: w.link.online, "the node")
        await until(lambda: w.link.called("PullMessages"), "a pull")
        assert (await asyncio.to_thread(get, f"{url}/readyz"))[0] == 200
        _, metrics = await asyncio.to_thread(get, f"{url}/metrics")
        assert "trellis_supernode_executors 1.0" in metrics
        assert "trellis_supernode_joined 1.0" in metrics
        assert await node.terminate() == 0


# ---- flags -----------------------------------------------------------------------------------------------------------


def run(*flags: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "trellis_supernode.main", *flags], capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stderr + done.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "Neither TLS nor --insecure"),
        (["--insecure", "--root-certificates", "x.pem"], "either --insecure or --root-certificates"),
        (["--root-certificates", "x.pem"], "Neither TLS nor --appio-insecure is set for the port of executors"),
        (["--insecure", "--ssl-certfile", "x.pem", "--ssl-keyfile", "x.pem"], "give --executor-ca-certfile"),
        (["--insecure", "--executor-ca-certfile", "x.pem"], "needs --ssl-certfile"),
        (["--insecure", "--rest"], "--rest: the HTTP transport"),
        (["--insecure", "--ssl-certfile", "x.pem"], "belong together"),
        (["--insecure", "--superlink", "http://x"], "host:port"),
        (["--insecure", "--state-dir", "/dev/null/state"], "name another with --state-dir"),
        (["--insecure", "--node-config", "a"], "--node-config"),
        (["--insecure", "--auth-supernode-private-key", "/no/key"], "/no/key"),
        (["--insecure", "--isolation", "docker"], "subprocess"),
    ],
)
def test_wrong_flags_end_with_a_sentence(tmp_path: Path, flags: list[str], sentence: str) -> None:
    code, output = run("--state-dir", str(tmp_path / "state"), *flags)
    assert code == 2
    assert sentence in output
    assert "Traceback" not in output


async def test_stocks_flags_are_accepted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        flags = ["--grpc-rere", "--flwr-dir", "x", "--auth-supernode-public-key", "y", "--max-retries", "9"]
        flags += ["--max-wait-time", "60", "--allow-runtime-dependency-installation"]
        node = w.process(*flags, "--isolation", "process", "--node-config", "a=1 b='two words'")
        await round_trip(w)
        assert await node.terminate() == 0
        assert "--grpc-rere is accepted" in node.log
