"""What an app's pyproject.toml says of it, read with the same rules when a FAB is built and when one arrives."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from typing import Any, Final

from packaging.version import InvalidVersion, Version

from trellis_wire.config import Config, ConfigError, flatten

PYPROJECT: Final = "pyproject.toml"
MAX_SIZE: Final = 10 * 1024 * 1024
"""Bytes of a packed FAB, the limit of Flower 1.20-1.42."""
MAX_PYPROJECT: Final = 1024 * 1024

_OBJECT_REF: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_MAX_NAME: Final = 200


class FabError(ValueError):
    """A FAB or an app's folder cannot be used; the text says why and what to do, in one sentence."""


@dataclass(frozen=True)
class FabInfo:
    """An app as its FAB describes it."""

    fab_id: str  # publisher/name
    version: str
    publisher: str
    name: str
    serverapp: str | None  # "module:attribute"; None in a bundle of an AgentApp (Flower 1.31 on)
    clientapp: str | None
    config: Config  # default run configuration, dotted keys
    fab_hash: str  # lowercase hex SHA-256 of the packed bytes
    filename: str
    format_version: int  # fab-format-version, 0 when not given (Flower 1.28 on)
    flwr_version_target: str | None


def fab_hash(content: bytes) -> str:
    """How a FAB is named everywhere: lowercase hex SHA-256 of its bytes."""
    return hashlib.sha256(content).hexdigest()


def read_project(text: bytes) -> dict[str, Any]:
    """Parse a pyproject.toml. FabError."""
    if len(text) > MAX_PYPROJECT:
        raise FabError(f"{PYPROJECT} has more than {MAX_PYPROJECT:,} bytes; keep only the app's settings in it.")
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FabError(f"{PYPROJECT} is not valid TOML ({error}); correct it and build the app again.") from error
    except RecursionError as error:
        raise FabError(f"{PYPROJECT} is nested too deeply; simplify it and build the app again.") from error


def describe(project: dict[str, Any], content_hash: str) -> FabInfo:
    """Check what Flower 1.20-1.42 require of a pyproject.toml and return what matters of it. FabError."""
    section = _table(project, "project")
    app = _table(project, "tool", "flwr", "app")
    components = _table(project, "tool", "flwr", "app", "components")
    name = _text(section, "name", "[project]")
    version = _text(section, "version", "[project]")
    publisher = _text(app, "publisher", "[tool.flwr.app]")
    required = "agentapp" not in components
    return FabInfo(
        fab_id=f"{publisher}/{name}",
        version=version,
        publisher=publisher,
        name=name,
        serverapp=_component(components, "serverapp", required),
        clientapp=_component(components, "clientapp", required),
        config=_run_config(app.get("config", {})),
        fab_hash=content_hash,
        filename=f"{publisher}.{name}.{version.replace('.', '-')}.{content_hash[:8]}.fab",
        format_version=_format_version(app),
        flwr_version_target=_version_target(app),
    )


def _table(project: dict[str, Any], *path: str) -> dict[str, Any]:
    table: Any = project
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise FabError(f"{PYPROJECT} has no [{'.'.join(path)}] section, which every Flower App needs; add it.")
    return table


def _text(table: dict[str, Any], key: str, section: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or not _is_name(value):
        raise FabError(
            f"{PYPROJECT} needs {key!r} in {section}: a printable text without slashes and of {_MAX_NAME} characters "
            "at most; correct it."
        )
    return value


def _is_name(value: str) -> bool:
    """Whether it can stand in a file's name, in a log and on a terminal."""
    return value.isprintable() and len(value) <= _MAX_NAME and not {"/", "\\"} & {*value} and value not in {".", ".."}


def _component(components: dict[str, Any], key: str, required: bool) -> str | None:
    value = components.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str) or _OBJECT_REF.fullmatch(value) is None:
        raise FabError(
            f'{PYPROJECT} needs {key!r} in [tool.flwr.app.components], written like "package.module:app"; correct it.'
        )
    return value


def _run_config(config: Any) -> Config:
    if not isinstance(config, dict):
        raise FabError(f"[tool.flwr.app.config] in {PYPROJECT} is no table; write key = value lines below it.")
    try:
        return flatten(config)
    except (ConfigError, RecursionError) as error:
        raise FabError(f"[tool.flwr.app.config] in {PYPROJECT}: {error}") from error


def _format_version(app: dict[str, Any]) -> int:
    value = app.get("fab-format-version", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FabError(f"'fab-format-version' in {PYPROJECT} must be 0 or 1; correct it.")
    return value


def _version_target(app: dict[str, Any]) -> str | None:
    value = app.get("flwr-version-target")
    if value is None:
        return None
    try:
        return str(Version(value))
    except (InvalidVersion, TypeError) as error:
        raise FabError(
            f"'flwr-version-target' in {PYPROJECT} must be a version such as \"1.28.0\"; correct it."
        ) from error
