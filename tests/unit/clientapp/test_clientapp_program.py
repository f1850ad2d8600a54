"""The program `trellis-clientapp` as a process: its settings, signals and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from unit.runner.appio_world import Hub
from unit.runner.runner_world import CLIENT, gone, interpreter
from waits import until

PROGRAM = (sys.executable, "-m", "trellis_clientapp.main")


def _start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


async def _process(hub: Hub, folder: Path, *more: str) -> subprocess.Popen[str]:
    argv = [*PROGRAM, "--clientappio-api-address", f"127.0.0.1:{hub.port}", "--work-dir", str(folder / "executor")]
    argv += ["--guest-python", str(interpreter("1.41.0")), "--insecure", *more]
    process = _start(argv)
    await until(lambda: bool(hub.hellos) or process.poll() is not None, "the executor", timeout=20)
    return process


async def _end(process: subprocess.Popen[str]) -> str:
    output, _ = await asyncio.to_thread(process.communicate, timeout=20)
    return output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_signal_leaves_anything_of_an_app(hub: Hub, tmp_path: Path, number: signal.Signals) -> None:
    app = hub.app(
        tmp_path / "app",
        CLIENT,
        """
        import subprocess
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)
        print(os.getpid(), os.getppid(), child.pid, flush=True)
        time.sleep(300)
        """,
    )
    process = await _process(hub, tmp_path, "--grace", "1")
    try:
        hub.task("t1", app)
        await until(lambda: hub.log_of("t1") != "", "the app")
        process.send_signal(number)
        output = await _end(process)
    finally:
        process.kill()
    pids = [int(pid) for pid in hub.log_of("t1").split()]
    assert len(pids) == 3
    await until(lambda: all(map(gone, pids)), "the end of app, zygote and child")
    if number is signal.SIGTERM:
        assert process.returncode == 0, output
        assert "back t1" in hub.reports


async def test_other_processes_of_the_user_cannot_read_the_runner(hub: Hub, tmp_path: Path) -> None:
    app = hub.app(
        tmp_path / "app",
        CLIENT,
        """
        zygote = os.getppid()
        runner = int(open(f"/proc/{zygote}/stat").read().rpartition(")")[2].split()[1])
        return answer(message, owner=os.stat(f"/proc/{runner}/environ").st_uid,
            score=int(open("/proc/self/oom_score_adj").read()))
        """,
    )
    process = await _process(hub, tmp_path)
    try:
        hub.task("t1", app)
        finish = await hub.finish_of("t1")
        records = hub.read(finish.reply)[2]
        assert records is not None
        config = getattr(records["config"], "items")  # noqa: B009
        assert config["score"] >= 500
        assert config["owner"] == 0  # root's, whoever runs it: the kernel's sign of a process that is not dumpable
        if os.geteuid() != 0:
            with pytest.raises(PermissionError):
                Path(f"/proc/{process.pid}/environ").read_bytes()
    finally:
        process.terminate()
        await _end(process)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--guest-python", "/nothing/python"), "The apps' interpreter /nothing/python cannot be started"),
        (("--root-certificates", "/nothing.pem"), "Give either --insecure or certificates, not both."),
        (("--slots", "0"), "slots"),
    ],
)
async def test_a_wrong_setting_is_one_sentence(hub: Hub, tmp_path: Path, flags: tuple[str, ...], sentence: str) -> None:
    process = await _process(hub, tmp_path, *flags)
    output = await _end(process)
    assert process.returncode == 2
    assert sentence in output
    assert "Traceback" not in output


def test_another_port_than_the_executors_is_told_so() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    argv = [*PROGRAM, "--clientappio-api-address", f"127.0.0.1:{port}", "--insecure"]
    try:
        done = subprocess.run(
            [*argv, "--guest-python", str(interpreter("1.41.0"))], capture_output=True, text=True, timeout=60
        )
    finally:
        server.stop(None).wait()
    assert done.returncode == 2
    assert "takes no executors" in done.stderr
    assert "9094" in done.stderr
