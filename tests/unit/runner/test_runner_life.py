"""What is around an app: its environment, what it starts, how it ends, and what stays behind (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from unit.runner.runner_world import CLIENT, World, descriptors, gone, interpreter
from waits import until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the host stays from test to test

Hosting = Callable[..., Awaitable[World]]

# A process in a session of its own whose parent has ended: what kill and process groups do not reach.
DAEMON = """
def daemon():
    import subprocess
    script = "import os,sys; pid = os.fork(); pid and (print(pid, flush=True), os._exit(0)); os.setsid();" \\
        "null = os.open(os.devnull, os.O_RDWR); [os.dup2(null, fd) for fd in (0, 1, 2)]; import time; time.sleep(300)"
    return int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE).stdout)
"""


async def test_the_environment_is_clean(hosting: Hosting, tmp_path: Path) -> None:
    secret = tmp_path / "db-password.txt"
    secret.write_text("s3cret")
    ours = {"TRELLIS_JOIN_TOKEN_FILE": "/x", "TRELLIS_INSECURE": "1", "PYTHONPATH": "/x", "AWS_SECRET_ACCESS_KEY": "k"}
    environ = {**os.environ, **ours, "DATABASE_URL": "db://", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    kept = os.open(tmp_path / "open", os.O_CREAT | os.O_WRONLY)
    os.set_inheritable(kept, True)
    world = await hosting(environ=environ, app_env=("DATABASE_URL", "NOT_SET"), app_secrets=(secret,))
    outcome = await world.client(
        """
        paths = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd") if fd not in "012"]
        links = [os.readlink(path) for path in paths if os.path.lexists(path)]
        return answer(message, names=sorted(os.environ), home=os.environ["HOME"], cwd=os.getcwd(),
            database=os.environ["DATABASE_URL"], secret=open(os.environ["APP_SECRET_DB_PASSWORD"]).read(),
            sockets=[link for link in links if link.startswith("socket:")],
            others=[link for link in links if not link.startswith("socket:")],
            stdin=os.readlink("/proc/self/fd/0"))
        """
    )
    os.close(kept)
    found = outcome.config
    allowed = {
        "PATH",
        "LANG",
        "LANGUAGE",
        "TZ",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HOME",
        "FLWR_HOME",
    }
    allowed |= {
        "GLIBC_TUNABLES",
        "FLWR_TELEMETRY_ENABLED",
        "FLWR_DISABLE_UPDATE_CHECK",
        "DATABASE_URL",
        "APP_SECRET_DB_PASSWORD",
    }
    allowed |= {"OMP_NUM_THREADS", "LC_ALL", "LC_CTYPE", "GRPC_VERBOSITY"}  # the last one is set by flwr itself
    assert {name for name in found["names"] if not name.startswith(("LC_", "OPENBLAS_", "MKL_", "CUDA_"))} <= allowed
    assert (found["database"], found["secret"]) == ("db://", "s3cret")
    assert found["home"] == str(tmp_path / "work")
    assert found["cwd"] == str(tmp_path / "work")
    assert len(found["sockets"]) == 1
    assert found["others"] == []
    assert found["stdin"] == "/dev/null"


WAITING = """
print("daemon", daemon(), flush=True)
time.sleep(300)
"""


async def test_what_an_app_leaves_behind_is_ended_with_it(world: World) -> None:
    app = world.app(CLIENT, textwrap.dedent(DAEMON) + "\nreturn answer(message, pid=daemon(), live=os.getpid())")
    other = await world.start("client", "import subprocess\n" + textwrap.dedent(DAEMON) + WAITING)
    await until(lambda: "daemon" in world.log, "the other guest's daemon")
    others = int(world.log.split("daemon ")[1].split()[0])
    outcome = await world.message(app)
    assert gone(outcome.config["live"])
    await until(lambda: gone(outcome.config["pid"]), "the end of the daemon", timeout=1.0)
    assert not gone(others)  # of a guest that still works
    await world.host.release(other, patience=0.0)
    await until(lambda: gone(others), "the end of the other guest's daemon")


async def test_work_that_is_ended_does_not_wait_for_the_app(world: World) -> None:
    guest = await world.start(
        "client",
        """
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("busy", os.getpid(), flush=True)
        while True:
            try:
                time.sleep(300)
            except BaseException:
                pass
        """,
    )
    await until(lambda: "busy" in world.log, "the app")
    since = time.monotonic()
    assert await world.host.release(guest, patience=0.0) is None
    assert time.monotonic() - since < 0.5
    assert gone(int(world.log.split()[1]))


async def test_threads_and_exit_handlers_get_a_moment(world: World) -> None:
    body = """
    import atexit, threading
    atexit.register(lambda: print("handler ran"))
    threading.Thread(target=lambda: (time.sleep({seconds}), print("thread ended"))).start()
    return answer(message, pid=os.getpid())
    """
    guest = await world.start("client", body.format(seconds=0.2))
    assert (await world.outcome(guest, patience=5.0)).config["pid"]
    assert "thread ended\nhandler ran\n" in world.log
    guest = await world.start("client", body.format(seconds=300))
    since = time.monotonic()
    outcome = await world.outcome(guest, patience=0.3)
    assert time.monotonic() - since < 1.0
    assert gone(outcome.config["pid"])


async def test_a_zygote_that_dies_takes_its_guests_along_and_is_replaced(world: World) -> None:
    other = await world.start("client", "print('waits', os.getpid(), flush=True); time.sleep(300)")
    await until(lambda: "waits" in world.log, "the other guest")
    os.kill(other.zygote.pid, signal.SIGKILL)
    assert (await world.outcome(other)).crashed.startswith("was ended by SIGKILL")
    await until(lambda: gone(int(world.log.split()[1])), "the other guest's end")
    assert (await world.client("return answer(message, fine=1)")).config == {"fine": 1}


RUNNER = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {path!r}
from trellis_kit import processes
from trellis_runner.host import GuestHost
from unit.runner.runner_world import World, settings


async def main():
    if {reap}:
        processes.become_subreaper()
    host = GuestHost(settings(Path({python!r}), Path({folder!r})), subreaper={reap})
    await host.start()
    world = World(host, Path({folder!r}))
    world.sink = lambda lines: [print(line.text, end="", flush=True) for line in lines]
    guest = await world.start("client", {body!r})
    print("zygote", guest.zygote.pid, flush=True)
    await asyncio.sleep({stay})
    await host.stop()
    print("stopped", flush=True)
    await asyncio.sleep(300)

asyncio.run(main())
"""
BUSY = textwrap.dedent(DAEMON) + textwrap.dedent(
    """
    import subprocess
    print("pids", os.getpid(), daemon(), subprocess.Popen(["sleep", "300"]).pid, flush=True)
    {then}
    time.sleep(300)
    """
)


def _runner(tmp_path: Path, *, body: str, reap: bool, stay: float) -> subprocess.Popen[str]:
    script = RUNNER.format(
        path=[path for path in sys.path if path],
        python=str(interpreter("1.41.0")),
        folder=str(tmp_path),
        body=body,
        reap=reap,
        stay=stay,
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


async def _line(process: subprocess.Popen[str], word: str) -> list[int]:
    assert process.stdout is not None
    while True:
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 20)
        assert line, f"the runner ended before it said {word!r}"
        if line.startswith(word):
            return [int(found) for found in line.split()[1:]]


async def test_a_killed_runner_leaves_nothing(tmp_path: Path) -> None:
    process = _runner(tmp_path, body=BUSY.format(then=""), reap=True, stay=300)
    try:
        pids = await _line(process, "zygote") + await _line(process, "pids")
        assert len(pids) == 4
        assert not any(map(gone, pids))
    finally:
        process.kill()
        process.wait()
    with contextlib.closing(process.stdout):  # type: ignore[type-var]
        await until(lambda: all(map(gone, pids)), "the end of zygote, guest, daemon and child")


async def test_a_killed_zygotes_orphans_are_ended_by_the_runner(tmp_path: Path) -> None:
    process = _runner(tmp_path, body=BUSY.format(then=""), reap=True, stay=300)
    try:
        pids = await _line(process, "zygote") + await _line(process, "pids")
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: all(map(gone, pids)), "the end of zygote, guest, daemon and child")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


async def test_a_stopped_host_leaves_nothing(tmp_path: Path) -> None:
    process = _runner(tmp_path, body=BUSY.format(then=""), reap=True, stay=1.0)
    try:
        pids = await _line(process, "zygote") + await _line(process, "pids")
        await _line(process, "stopped")
        assert all(map(gone, pids))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


async def test_what_an_app_imports_from_outside_is_there_in_the_next_fork(world: World) -> None:
    app = world.app(
        CLIENT,
        "there = 'wave' in sys.modules\nimport wave, helper\nreturn answer(message, there=there)",
        helper="",
    )
    first = await world.message(app)
    assert not first.config["there"]
    assert "wave" in first.modules
    assert not {"helper", "main_app"} & set(first.modules)
    assert world.host.preimport(first.modules)
    assert not world.host.preimport(first.modules)
    second = await world.message(app)
    assert second.config["there"]
    assert list(second.modules) == []


async def test_modules_that_start_threads_are_left_to_the_forks(hosting: Hosting, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "busylib.py").write_text(
        "import threading, time\nt = threading.Thread(target=time.sleep, args=(300,), daemon=True)\nt.start()\n"
    )
    (library / "quietlib.py").write_text("")
    world = await hosting(environ={**os.environ, "PYTHONPATH": str(library)}, app_env=("PYTHONPATH",))
    app = world.app(
        CLIENT,
        """
        there = [name for name in ("busylib", "quietlib") if name in sys.modules]
        import busylib, quietlib
        return answer(message, there=there, alive=busylib.t.is_alive(), zygote=os.getppid())
        """,
    )
    first = await world.message(app)
    world.host.preimport(first.modules)
    await world.message(app)  # the news of the thread comes with it
    third = await world.message(app)
    assert third.config["there"] == ["quietlib"]
    assert third.config["alive"]
    assert third.config["zygote"] != first.config["zygote"]
    await until(lambda: gone(first.config["zygote"]), "the end of the zygote with threads")


async def test_a_library_whose_import_kills_the_zygote_is_not_tried_again(hosting: Hosting, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "deadly.py").write_text("import os, sys\nif sys.argv[0] != 'flwr-clientapp': os._exit(1)\n")
    world = await hosting(environ={**os.environ, "PYTHONPATH": str(library)}, app_env=("PYTHONPATH",))
    app = world.app(CLIENT, "import deadly\nreturn answer(message, fine=1)")
    zygote = (first := await world.host.fork("client", world.sink)).zygote
    await world.send(first, app)
    world.host.preimport((await world.outcome(first)).modules)
    await until(lambda: not zygote.alive, "the end of the zygote")
    for _ in range(2):
        assert (await world.message(app)).config == {"fine": 1}


async def test_500_messages_leave_no_descriptor_and_no_process(world: World) -> None:
    app = world.app(CLIENT, "return answer(message, n=1)")
    await world.message(app)
    before = descriptors()
    zygote = (await world.host.fork("client", world.sink)).zygote
    for guest in list(zygote.guests.values()):
        await world.host.release(guest)

    async def several(count: int) -> None:
        for _ in range(count):
            assert (await world.message(app)).config == {"n": 1}

    await asyncio.gather(*(several(125) for _ in range(4)))
    assert descriptors() <= before
    assert len(os.listdir(f"/proc/{zygote.pid}/fd")) <= 8
    assert Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text() == ""
    assert zygote.guests == {}
