"""Building FABs whose bytes are those of stock `flwr build`: as Flower 1.24 does it, and as 1.41 does it.

A FAB's hash names it, so two tools must agree on every byte: the order of files, zip headers with a fixed date, stored
without compression, pyproject.toml written anew without its federations, and the manifest `.info/CONTENT`.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import tomli_w
from pathspec import PathSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from trellis_wire.fab.archive import MANIFEST
from trellis_wire.fab.format_rules import check_format
from trellis_wire.fab.project import MAX_SIZE, PYPROJECT, FabError, describe, read_project

FabFormat = Literal["1.24", "1.41"]
FORMATS: Final[tuple[FabFormat, ...]] = ("1.24", "1.41")

_DATE: Final = (2024, 10, 1, 0, 0, 0)
_MAX_DEPTH: Final = 10
_PROJECT_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")

# File patterns in .gitignore's language, as the releases have them.
_SOURCES: Final = ("**/*.py", "**/*.toml", "**/*.md")
_DATA: Final = ("**/*.yaml", "**/*.yml", "**/*.json", "**/*.jsonl")
_NEVER: Final = (".flwr/**", "**/__pycache__/**")
_PUBLISHED: Final = (*_SOURCES, *_DATA, "/.gitignore", "**/.editorconfig", "/LICENSE", "/LICENSE.md")
_UNPUBLISHED: Final = (".flwr/**", ".venv/**", "**/__pycache__/**")
_BUNDLED: Final = (*_SOURCES, *_DATA, "/LICENSE")
_UNBUNDLED: Final = (
    *_NEVER,
    PYPROJECT,
    "**/*_test.py",
    "**/test_*.py",
    *("build/**", "eggs/**", ".eggs/**", "lib/**", "lib64/**", "parts/**", "*.egg"),
    *(".venv/**", "env/**", "venv/**", "ENV/**", "env.bak/**", "venv.bak/**"),
)

Files = Mapping[str, Path]
Patterns = PathSpec[GitIgnoreSpecPattern]


def build(app_dir: Path, *, format: FabFormat = "1.41") -> bytes:
    """The FAB of the app in a folder, byte for byte what `flwr build` of that release makes. FabError."""
    root = app_dir.expanduser().resolve()
    if not (root / PYPROJECT).is_file():
        raise FabError(f"{app_dir} has no {PYPROJECT}; name the folder of a Flower App.")
    try:
        content = _build_124(root) if format == "1.24" else _build_141(root)
    except (OSError, UnicodeEncodeError) as error:
        raise FabError(f"A file of the app cannot be bundled ({error}); correct it or take it out.") from error
    if len(content) > MAX_SIZE:
        raise FabError(
            f"The FAB would have {len(content):,} bytes and at most {MAX_SIZE:,} are allowed; leave files out with "
            "'fab-exclude' in [tool.flwr.app] or with .gitignore."
        )
    return content


def _build_124(root: Path) -> bytes:
    """Flower 1.23-1.26: one list of patterns; the manifest leaves the project file out and ends each line."""
    project = _load_project(root)
    files = _collect(root, links=True)
    included, excluded = _spec(_SOURCES), _spec((*_NEVER, PYPROJECT, *_gitignore(root)))
    paths = sorted(path for path in files if included.match_file(path) and not excluded.match_file(path))
    return _pack(project, files, paths, lambda lines: "".join(f"{line}\n" for line in lines[1:]))


def _build_141(root: Path) -> bytes:
    """Flower 1.28-1.42: of what may be published, what is bundled; the manifest has the project file first."""
    project = _load_project(root)
    files = _published(root)
    if PYPROJECT not in files:
        raise FabError(f".gitignore leaves {PYPROJECT} out, which every FAB needs; take it out of .gitignore.")
    name = str(project["project"]["name"]).strip()
    if _PROJECT_NAME.fullmatch(name) is None:
        raise FabError(
            f"The project name {name!r} must start with a letter and have only letters, digits and hyphens, "
            f"32 at most; change it in {PYPROJECT}."
        )
    paths = sorted(_bundled(list(files), project["tool"]["flwr"]["app"]))
    check_format(project, paths)
    return _pack(project, files, paths, "\n".join)


def _load_project(root: Path) -> dict[str, Any]:
    project = read_project((root / PYPROJECT).read_bytes())
    describe(project, "")
    project["tool"]["flwr"].pop("federations", None)
    return project


def _collect(root: Path, *, links: bool) -> dict[str, Path]:
    """Every file by its path below the app. Linked folders are never entered; linked files only if `links`."""
    files: dict[str, Path] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                if not links or not path.is_file():
                    continue
                if not path.resolve().is_relative_to(root):
                    raise FabError(f"{path} links to a file outside the app; put the file itself into the app.")
            if path.is_file():
                files[path.relative_to(root).as_posix()] = path
    return files


def _published(root: Path) -> Files:
    included, excluded, ignored = _spec(_PUBLISHED), _spec(_UNPUBLISHED), _spec(_gitignore(root, links=False))
    files = {
        path: source
        for path, source in _collect(root, links=False).items()
        if included.match_file(path) and not excluded.match_file(path) and not ignored.match_file(path)
    }
    for path in files:
        if path.count("/") > _MAX_DEPTH:
            raise FabError(f"{path} lies more than {_MAX_DEPTH} folders deep; move it up or exclude it in .gitignore.")
    return files


def _bundled(paths: list[str], app: Mapping[str, Any]) -> list[str]:
    """Apply the app's own `fab-include` and `fab-exclude`, then the rules that it cannot widen."""
    include, exclude = _patterns(app, "fab-include", paths), _patterns(app, "fab-exclude", paths)
    chosen = [
        path
        for path in paths
        if (include is None or include.match_file(path)) and not (exclude and exclude.match_file(path))
    ]
    allowed, never = _spec(_BUNDLED), _spec(_UNBUNDLED)
    beyond = [path for path in chosen if not allowed.match_file(path)]
    if beyond and (include or exclude):
        raise FabError(f"'fab-include' names {beyond[0]}, a kind of file that no FAB may hold; narrow its patterns.")
    return [path for path in chosen if allowed.match_file(path) and not never.match_file(path)]


def _patterns(app: Mapping[str, Any], key: str, paths: Iterable[str]) -> Patterns | None:
    if key not in app:
        return None
    patterns = app[key]
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p.strip() for p in patterns):
        raise FabError(f"{key!r} in [tool.flwr.app] must be a list of file patterns; correct or remove it.")
    for pattern in patterns:
        if not any(map(_spec((pattern,)).match_file, paths)):
            raise FabError(f"The pattern {pattern!r} of {key!r} matches no file of the app; correct or remove it.")
    return _spec(patterns)


def _spec(patterns: Iterable[str]) -> Patterns:
    try:
        return Patterns.from_lines(GitIgnoreSpecPattern, patterns)
    except ValueError as error:
        raise FabError(f"A file pattern of the app is invalid ({error}); correct it.") from error


def _gitignore(root: Path, *, links: bool = True) -> list[str]:
    """The patterns of the app's own .gitignore; one that is no UTF-8 text counts as empty, as it does in Flower."""
    path = root / ".gitignore"
    if not path.is_file() or (path.is_symlink() and not links):
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        return []
    return [line for line in lines if line and not line.startswith("#")]


def _pack(project: dict[str, Any], files: Files, paths: list[str], manifest: Callable[[list[str]], str]) -> bytes:
    lines: list[str] = []
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:

        def add(path: str, content: bytes) -> None:
            lines.append(f"{path},{hashlib.sha256(content).hexdigest()},{len(content) * 8}")
            archive.writestr(_member(path), content)

        add(PYPROJECT, tomli_w.dumps(project).encode())
        for path in paths:
            content = files[path].read_bytes()
            if len(content) + buffer.tell() > MAX_SIZE:
                raise FabError(
                    f"With {path} the FAB passes {MAX_SIZE:,} bytes, which is the limit; leave files out with "
                    "'fab-exclude' in [tool.flwr.app] or with .gitignore."
                )
            add(path, content)
        archive.writestr(_member(MANIFEST), manifest(lines))
    return buffer.getvalue()


def _member(path: str) -> zipfile.ZipInfo:
    """A member that looks the same wherever it is made: fixed date, stored, owner may read and write."""
    member = zipfile.ZipInfo(path, _DATE)
    member.create_system = 3
    member.external_attr = 0o600 << 16
    return member
