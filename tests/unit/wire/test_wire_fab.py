"""FABs: the bytes that stock builds, and archives made to do harm."""

import hashlib
import io
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_fabs import plant
from trellis_wire.fab import FORMATS, MAX_MEMBERS, MAX_SIZE, FabError, FabFormat, build, fab_hash, inspect, unpack
from wire_vectors import fabs

PROJECT = """
[project]
name = "app"
version = "1.0.0"
[tool.flwr.app]
publisher = "me"
flwr-version-target = "1.28"
[tool.flwr.app.components]
serverapp = "app.server:app"
clientapp = "app.client:app"
[tool.flwr.app.config]
lr = 0.5
[tool.flwr.app.config.train]
name = "x"
verbose = true
"""


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", fabs(), ids=lambda case: case["name"])
def test_fabs_have_the_hashes_of_stock_and_survive_unpacking(
    case: dict[str, Any], format: FabFormat, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    plant(case["tree"], app)
    if case["hashes"][format] is None:
        with pytest.raises(FabError):
            build(app, format=format)
        return
    content = build(app, format=format)
    assert fab_hash(content) == case["hashes"][format]
    info = unpack(content, tmp_path / "unpacked")
    assert info == inspect(content)
    assert info.fab_hash == case["hashes"][format]
    unpacked = {
        path.relative_to(tmp_path / "unpacked") for path in (tmp_path / "unpacked").rglob("*") if path.is_file()
    }
    assert Path(".info/CONTENT") not in unpacked
    for path in unpacked - {Path("pyproject.toml")}:
        assert (tmp_path / "unpacked" / path).read_bytes() == (app / path).read_bytes()


names = st.text("abcdefghijklmnopqrstuvwxyzABC019_ é日", min_size=1, max_size=8).map(str.strip).filter(bool)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
trees = st.dictionaries(paths.map(lambda path: f"{path}.py"), st.text(max_size=50), max_size=8)


@settings(max_examples=60, deadline=None)
@given(trees, st.sampled_from(FORMATS))
def test_any_app_survives_building_inspecting_and_unpacking(tree: dict[str, str], format: FabFormat) -> None:
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder, "app")
        app.mkdir()
        plant({"pyproject.toml": PROJECT, **tree}, app)
        content = build(app, format=format)
        assert build(app, format=format) == content
        unpack(content, Path(folder, "a/b"))
        again = build(Path(folder, "a/b"), format=format)
        assert again == content  # what is unpacked is the same app


def test_what_a_fab_says_of_its_app(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    info = inspect(build(tmp_path))
    assert (info.fab_id, info.version, info.publisher, info.name) == ("me/app", "1.0.0", "me", "app")
    assert (info.serverapp, info.clientapp) == ("app.server:app", "app.client:app")
    assert info.config == {"lr": 0.5, "train.name": "x", "train.verbose": True}
    assert info.filename == f"me.app.1-0-0.{info.fab_hash[:8]}.fab"
    assert (info.format_version, info.flwr_version_target) == (0, "1.28")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "app"', "", "'name' in [project]"),
        ('name = "app"', 'name = "a/../b"', "'name' in [project]"),
        ('name = "app"', "name = 5", "'name' in [project]"),
        ('version = "1.0.0"', "", "'version' in [project]"),
        ('publisher = "me"', 'publisher = ""', "'publisher' in [tool.flwr.app]"),
        ('publisher = "me"', 'publisher = ".."', "'publisher' in [tool.flwr.app]"),
        ("[tool.flwr.app.components]", "[tool.flwr.app.parts]", "no [tool.flwr.app.components] section"),
        ("[tool.flwr.app]", "[tool.other]", "'publisher' in [tool.flwr.app]"),
        ('"app.server:app"', '"app.server"', "'serverapp' in [tool.flwr.app.components]"),
        ('"app.client:app"', '"os; x:app"', "'clientapp' in [tool.flwr.app.components]"),
        ("lr = 0.5", "lr = [1]", "'lr' is a list"),
        ('flwr-version-target = "1.28"', 'flwr-version-target = "new"', "must be a version"),
        ('flwr-version-target = "1.28"', "flwr-version-target = 5", "must be a version"),
        ('flwr-version-target = "1.28"', "fab-format-version = true", "must be 0 or 1"),
        ("lr = 0.5", "lr = ", "not valid TOML"),
        ("lr = 0.5", "lr = " + "[" * 100_000, "TOML|nested too deeply"),
    ],
)
def test_projects_that_are_no_app_are_refused(old: str, new: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace(old, new))
    with pytest.raises(FabError) as caught:
        build(tmp_path)
    assert any(part in str(caught.value) for part in says.split("|"))


def test_folders_that_cannot_be_built_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FabError, match=r"has no pyproject\.toml"):
        build(tmp_path / "missing")
    with pytest.raises(FabError, match=r"has no pyproject\.toml"):
        build(tmp_path)
    (tmp_path / "secret.py").write_text("key = 1")
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "leak.py").symlink_to("../secret.py")
    with pytest.raises(FabError, match="links to a file outside the app"):
        build(app, format="1.24")
    with zipfile.ZipFile(io.BytesIO(build(app, format="1.41"))) as archive:
        assert "leak.py" not in archive.namelist()


# ---- hostile archives -----------------------------------------------------------------------------------------------

Members = list[tuple[str | zipfile.ZipInfo, bytes]]


def manifest(members: Members) -> bytes:
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in members]
    return "\n".join(lines).encode()


def packed(members: Members, content: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with a manifest that is right unless given."""
    plain: Members = [(member if isinstance(member, str) else member.filename, data) for member, data in members]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for member, data in members:
            archive.writestr(member, data)
        archive.writestr(".info/CONTENT", manifest(plain) if content is None else content)
    return buffer.getvalue()


GOOD: Members = [("pyproject.toml", PROJECT.encode()), ("app/server.py", b"app = None\n"), ("app/client.py", b"")]


def with_member(name: str, data: bytes = b"x", *, mode: int = 0) -> bytes:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return packed([*GOOD, (member, data)])


def renamed(old: bytes, new: bytes) -> bytes:
    """A name that zipfile itself would not write."""
    assert len(old) == len(new)
    return packed([*GOOD, (old.decode(), b"x")]).replace(old, new)


def encrypted() -> bytes:
    content = bytearray(packed(GOOD))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    return bytes(content)


def overstated() -> bytes:
    """Claims sizes for which nobody should reserve memory."""
    content = bytearray(packed(GOOD))
    at = content.index(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFF00, 0xFFFFFF00)
    return bytes(content)


def understated() -> bytes:
    """Says that a bomb unpacks to ten bytes."""
    content = bytearray(packed([*GOOD, ("bomb.py", b"\0" * 5_000_000)], compression=zipfile.ZIP_DEFLATED))
    at = content.index(b"bomb.py", content.index(b"PK\x01\x02")) - 46
    content[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(content)


def damaged() -> bytes:
    content = packed(GOOD)
    return content.replace(b"app = None", b"app = Evil", 1)


def cut() -> bytes:
    return packed(GOOD)[:-40]


def unfolding() -> bytes:
    return packed([*GOOD, ("big.md", b"\0" * (101 << 20))], b"", zipfile.ZIP_DEFLATED)


def crowded() -> bytes:
    return packed([(f"{index}.py", b"") for index in range(MAX_MEMBERS + 1)])


def other_hash() -> bytes:
    return packed(GOOD, manifest([GOOD[0], (GOOD[1][0], b"app = 1234\n"), GOOD[2]]))


def listed_twice() -> bytes:
    return packed(GOOD, manifest([*GOOD, GOOD[1]]))


def overlapping() -> bytes:
    """Many members over the same bytes: small packed, more than allowed unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kernel.py", b"\0" * (1 << 20))
        shared = archive.infolist()[0]
        for index in range(200):
            twin = zipfile.ZipInfo(f"k{index}.py")
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
                setattr(twin, field, getattr(shared, field))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    return buffer.getvalue()


HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    ("nothing", lambda: b"", "not a zip archive"),
    ("no zip", lambda: b"#!/bin/sh\nrm -rf ~\n", "not a zip archive"),
    ("a tail only", lambda: b"PK\x05\x06" + b"\xff" * 18, "not a zip archive"),
    ("cut short", cut, "not a zip archive"),
    ("over 10 MiB packed", lambda: b"PK" + b"\0" * MAX_SIZE, "at most 10,485,760 are allowed"),
    ("over 100 MiB unpacked", unfolding, "unpacks to more than"),
    ("over 100 MiB by overlap", overlapping, "unpacks to more than"),
    ("over 10,000 members", crowded, "more than 10,000 files"),
    ("sizes overstated", overstated, "unpacks to more than"),
    ("sizes understated", understated, "is damaged|is not the one"),
    ("a parent path", lambda: with_member("../evil.py"), "leads out of the app"),
    ("a parent path inside", lambda: with_member("app/../../evil.py"), "leads out of the app"),
    ("an absolute path", lambda: with_member("/etc/evil.py"), "absolute path"),
    ("a drive", lambda: with_member("C:/evil.py"), "absolute path"),
    ("a backslash", lambda: with_member("app\\evil.py"), "cannot be unpacked"),
    ("an empty part", lambda: with_member("app//evil.py"), "cannot be unpacked"),
    ("a dot part", lambda: with_member("./evil.py"), "cannot be unpacked"),
    ("a control character", lambda: with_member("app/ev\nil.py"), "cannot be unpacked"),
    ("a zero byte", lambda: renamed(b"app/evilZ.py", b"app/evil\0.py"), "cannot be unpacked"),
    ("a long name", lambda: with_member("a" * 300 + ".py"), "cannot be unpacked"),
    ("a long path", lambda: with_member("a/" * 600 + "x.py"), "cannot be unpacked"),
    ("a link", lambda: with_member("app/link.py", b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "is a link"),
    ("a device", lambda: with_member("app/dev.py", mode=stat.S_IFCHR | 0o666), "no ordinary file"),
    ("a pipe", lambda: with_member("app/pipe.py", mode=stat.S_IFIFO | 0o666), "no ordinary file"),
    ("a file as a folder", lambda: with_member("app/server.py/x.py"), "both as a file and as a folder"),
    ("a member twice", lambda: renamed(b"app/serveZ.py", b"app/server.py"), "twice"),
    ("encrypted", encrypted, "is encrypted"),
    ("bzip2", lambda: packed(GOOD, compression=zipfile.ZIP_BZIP2), "unknown way"),
    ("no pyproject", lambda: packed(GOOD[1:]), "has no pyproject.toml"),
    ("pyproject in a folder", lambda: packed([("sub/pyproject.toml", GOOD[0][1])]), "has no pyproject.toml"),
    ("pyproject too large", lambda: packed([("pyproject.toml", b"#" * 1_100_000)]), "more than 1,048,576 bytes"),
    ("no manifest", lambda: packed(GOOD).replace(b".info/CONTENT", b".info/CONTENS"), "has no .info/CONTENT"),
    ("wrong content hash", other_hash, "is not the one"),
    ("wrong content size", lambda: packed(GOOD, manifest(GOOD).replace(b",88", b",89")), "is not the one"),
    ("changed after packing", damaged, "is damaged"),
    ("listed but missing", lambda: packed(GOOD, manifest([*GOOD, ("gone.py", b"")])), "which is missing"),
    ("present but not listed", lambda: packed([*GOOD, ("more.py", b"")], manifest(GOOD)), "is not listed"),
    ("listed twice", listed_twice, "cannot be read"),
    ("manifest of one word", lambda: packed(GOOD, b"nonsense"), "cannot be read"),
    ("manifest no text", lambda: packed(GOOD, b"\xff\xfe,a,b"), "is not text"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("make", "says"), [entry[1:] for entry in HOSTILE], ids=[entry[0] for entry in HOSTILE])
def test_hostile_archives_are_refused_and_leave_nothing(make: Callable[[], bytes], says: str, tmp_path: Path) -> None:
    content = make()
    for unpacking in (False, True):
        with pytest.raises(FabError) as caught:
            unpack(content, tmp_path / "app") if unpacking else inspect(content)
        text = str(caught.value)
        assert any(part in text for part in says.split("|")), text
        assert text.endswith(".")
        assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_the_good_archive_of_these_tests_is_good(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert inspect(packed(GOOD, compression=compression)).fab_id == "me/app"
    older = packed(GOOD, manifest(GOOD[1:]) + b"\n")  # Flower up to 1.26
    with_folder = zipfile.ZipInfo("app/")
    with_folder.external_attr = (stat.S_IFDIR | 0o755) << 16
    assert inspect(older).version == "1.0.0"
    assert inspect(packed([(with_folder, b""), *GOOD], manifest(GOOD))).version == "1.0.0"


def test_unpacking_is_whole_or_not_at_all(tmp_path: Path) -> None:
    content = packed(GOOD)
    target = tmp_path / "deep" / "app"
    unpack(content, target)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["app"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    with pytest.raises(FileExistsError):
        unpack(content, target)
    empty = tmp_path / "empty"
    empty.mkdir()
    unpack(content, empty)
    assert (empty / "app" / "server.py").read_bytes() == b"app = None\n"
