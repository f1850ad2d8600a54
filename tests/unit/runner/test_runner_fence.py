"""Apps that mean harm to their executor, its secrets and other runs: the fence around them (Landlock 6, Linux 6.12)."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from trellis_kit import fence
from trellis_runner.zygote import GuestProblem
from unit.runner.runner_world import CLIENT, World, gone
from waits import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

Hosting = Callable[..., Awaitable[World]]

TRY = """
import ctypes, subprocess

def attempt(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return "done"
"""


async def test_secrets_can_neither_be_read_nor_changed(hosting: Hosting, tmp_path: Path) -> None:
    secrets = tmp_path / "site/secrets"
    secrets.mkdir(parents=True)
    token, key = secrets / "token", tmp_path / "site/node.key"
    token.write_text("s3cret")
    key.write_text("s3cret")
    (tmp_path / "link").symlink_to(secrets)
    world = await hosting(hidden=(secrets, key))
    app = world.app(
        CLIENT,
        TRY
        + f"""
token, key, link = {str(token)!r}, {str(key)!r}, {str(tmp_path / "link/token")!r}
return answer(
    message,
    read=[attempt(lambda path=path: open(path).read()) for path in (token, key, link, "/proc/self/root" + token)],
    changed=[
        attempt(lambda: open(token, "w")),
        attempt(lambda: os.unlink(key)),
        attempt(lambda: os.rename(os.path.dirname(token), "/tmp/taken")),
        attempt(lambda: os.link(token, "taken")),
    ],
    child=subprocess.run(["cat", token], stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout.decode(),
)
""",
    )
    found = (await world.message(app)).config
    assert found["read"] == ["Permission denied"] * 4
    assert "done" not in found["changed"]
    assert found["child"] == ""
    assert token.read_text() == key.read_text() == "s3cret"


async def test_a_run_reaches_its_own_folders_and_none_of_another_run(hosting: Hosting, tmp_path: Path) -> None:
    world = await hosting()
    runs = tmp_path / "root" / "runs"
    for run in ("5", "6"):
        for folder in ("app", "work"):
            (runs / run / folder).mkdir(parents=True)
    (runs / "6/app/main_app.py").write_text("theirs")
    (runs / "5/app/main_app.py").write_text(
        CLIENT
        + "\n".join(
            "    " + line
            for line in (
                TRY
                + f"""
theirs = {str(runs / "6")!r}
open("mine", "w").write("x")
open(os.path.join(os.path.dirname(__file__), "mine"), "w").write("x")
return answer(message, home=os.environ["HOME"], theirs=[
    attempt(lambda: open(theirs + "/app/main_app.py").read()),
    attempt(lambda: open(theirs + "/app/main_app.py", "w")),
    attempt(lambda: open(theirs + "/work/new", "w")),
    attempt(lambda: os.mkdir(theirs + "/../7")),
])
"""
            ).splitlines()
        )
    )
    found = (await world.message(runs / "5/app", work_dir=str(runs / "5/work"))).config
    assert found["theirs"] == ["Permission denied"] * 4
    assert found["home"] == str(runs / "5/work")
    assert (runs / "5/work/mine").read_text() == (runs / "5/app/mine").read_text() == "x"


async def test_the_interpreter_stays_as_it_is(world: World) -> None:
    app = world.app(
        CLIENT,
        TRY
        + """
import flwr
packages = os.path.dirname(os.path.dirname(flwr.__file__))
return answer(message, tries=[
    attempt(lambda: open(os.path.join(packages, "planted.pth"), "w")),
    attempt(lambda: open(flwr.__file__, "a")),
    attempt(lambda: os.unlink(sys.executable)),
])
""",
    )
    assert (await world.message(app)).config["tries"] == ["Permission denied"] * 3


async def test_nobody_outside_can_be_signalled_or_traced(world: World) -> None:
    assert fence.version() >= 6
    other = await world.start("client", "print('waits', flush=True); time.sleep(300)")
    await until(lambda: "waits" in world.log, "the other guest")
    victim = await other.forked
    app = world.app(
        CLIENT,
        TRY
        + f"""
libc = ctypes.CDLL(None, use_errno=True)
def trace(pid):
    if libc.ptrace(16, pid, 0, 0) < 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
others = ({os.getpid()}, os.getppid(), {victim})
child = subprocess.Popen(["sleep", "300"])
child.kill()
return answer(message,
    killed=[attempt(lambda pid=pid: os.kill(pid, 9)) for pid in others],
    traced=[attempt(lambda pid=pid: trace(pid)) for pid in others],
    read=[attempt(lambda pid=pid: open(f"/proc/{{pid}}/mem")) for pid in others],
    own=child.wait())
""",
    )
    found = (await world.message(app)).config
    assert found["killed"] == found["traced"] == ["Operation not permitted"] * 3
    assert found["read"] == ["Permission denied"] * 3
    assert found["own"] == -9
    assert victim is not None
    assert not gone(victim)
    await world.host.release(other, patience=0.0)


@pytest.mark.parametrize(("sandbox", "told"), [("enforce", "Permission denied"), ("off", "done")])
async def test_an_operator_may_take_the_fence_down(sandbox: str, told: str, hosting: Hosting, tmp_path: Path) -> None:
    secret = tmp_path / "site" / "token"
    secret.parent.mkdir()
    secret.write_text("s3cret")
    code = TRY + f"return answer(message, read=attempt(lambda: open({str(secret)!r}).read()))"
    world = await hosting(hidden=(secret,), sandbox=sandbox)
    assert (await world.message(world.app(CLIENT, code))).config["read"] == told


async def test_without_landlock_an_executor_that_must_have_a_fence_does_not_start(
    hosting: Hosting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fence, "version", lambda: 0)
    with pytest.raises(GuestProblem, match="--guest-sandbox try"):
        await hosting(sandbox="enforce")
    await hosting(sandbox="try")
    assert "This kernel has no Landlock" in caplog.text
