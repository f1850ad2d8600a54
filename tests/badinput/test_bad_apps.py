"""FABs that are none, as a command line would submit them to a SuperLink."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence

import pytest
from badinput_world import Case, Refused, World
from edge_world import PYPROJECT
from grpc import StatusCode

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD: Mapping[str, bytes] = {"pyproject.toml": PYPROJECT.encode(), "small.py": b"server = client = None\n"}


def packed(*more: tuple[str | zipfile.ZipInfo, bytes], files: Mapping[str, bytes] = GOOD, lie: bytes = b"") -> bytes:
    """A FAB with these files and further members, listed as they are; `lie` is hashed along."""
    members: Sequence[tuple[str | zipfile.ZipInfo, bytes]] = [*files.items(), *more]
    names = [name if isinstance(name, str) else name.filename for name, _ in members]
    manifest = "\n".join(
        f"{name},{hashlib.sha256(content + lie).hexdigest()},{len(content) * 8}"
        for name, (_, content) in zip(names, members, strict=True)
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name, content in members:
            archive.writestr(name, content)
        archive.writestr(".info/CONTENT", manifest)
    return buffer.getvalue()


def link(name: str, target: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


FABS: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "empty but for one byte": (lambda: b"P", "not a zip"),
    "no zip": (lambda: b"this is no zip" * 1000, "not a zip"),
    "a zip cut off": (lambda: packed()[:-30], "not a zip"),
    "a zip with a damaged member": (lambda: packed().replace(b"PK\3\4", b"PK\5\4", 1), "damaged|not a zip"),
    "over 10 MiB packed": (lambda: packed(("noise.py", os.urandom(11_000_000))), "10,485,760"),
    "over 100 MiB unpacked": (lambda: packed(("zeros.py", bytes(105_000_000))), "104,857,600"),
    "over 10,000 members": (lambda: packed(*((f"m{n}.py", b"") for n in range(10_001))), "10,000 files"),
    "../": (lambda: packed(("../evil.py", b"")), r"'\.\.'"),
    "../ inside": (lambda: packed(("a/../../evil.py", b"")), r"'\.\.'"),
    "an absolute path": (lambda: packed(("/etc/cron.d/evil", b"")), "absolute"),
    "a drive": (lambda: packed(("C:/evil.py", b"")), "absolute"),
    "a backslash": (lambda: packed(("a\\evil.py", b"")), "cannot be unpacked"),
    "a link": (lambda: packed(link("passwords", b"/etc/passwd")), "is a link"),
    "a name twice": (lambda: packed(("small.py", b"other")), "twice"),
    "a file that is a folder, too": (lambda: packed(("small.py/evil.py", b"")), "both as a file and as a folder"),
    "no pyproject.toml": (lambda: packed(files={"small.py": b""}), r"no pyproject\.toml"),
    "a pyproject.toml that is none": (lambda: packed(files={"pyproject.toml": b"\xff\xfe"}), r"pyproject\.toml"),
    "another content than listed": (lambda: packed(lie=b"!"), "is not the one"),
}


@pytest.mark.parametrize("name", FABS)
async def test_a_bad_fab_starts_no_run(world: World, name: str) -> None:
    make, told = FABS[name]
    content = make()
    refused = Refused(StatusCode.FAILED_PRECONDITION, told)
    await world.check(Case(name, lambda w: w.submit(content), refused, "StartRun refused: .*(FAB|app)"))


async def test_another_fab_than_its_hash_says(world: World) -> None:
    refused = Refused(StatusCode.FAILED_PRECONDITION, "its hash is not the one")
    case = Case("", lambda w: w.submit(w.fab, hash_str="0" * 64), refused, "StartRun refused: .*altered")
    await world.check(case)


async def test_a_fab_that_no_call_carries(world: World) -> None:
    refused = Refused(StatusCode.RESOURCE_EXHAUSTED, "")
    await world.check(Case("", lambda w: w.submit(bytes(34 << 20)), refused, "StartRun refused: .*too large"))
