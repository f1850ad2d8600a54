"""Configuration values of runs and nodes: parsed from the command line, flattened, fused, sent (Flower 1.20-1.42)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import records_pb2

Scalar = bool | int | float | str | bytes
Config = dict[str, Scalar]

_S = TypeVar("_S", records_pb2.Scalar, appio_pb2.Scalar)
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1
_PAIR: Final = re.compile(r"""\s*([A-Za-z0-9_.-]+)\s*=\s*("(?:\\.|[^"\\])*"|'[^']*'|[^\s,"']+)\s*,?""")


class ConfigError(ValueError):
    """A configuration cannot be read; the text says what to write instead."""


def parse_config_args(args: Sequence[str]) -> Config:
    """What `--run-config` and `--node-config` take: `key=value` pairs (several in one argument) or one .toml file.

    Values are TOML: `epochs=3 rate=0.1 name="a b" verbose=true`. Nested tables come out with dotted keys. A key in a
    later argument replaces that of an earlier one. ConfigError.
    """
    files = [argument for argument in args if argument.strip().endswith(".toml") and "=" not in argument]
    if files:
        if len(args) > 1:
            raise ConfigError("Give either one .toml file or key=value pairs, not both.")
        return _from_file(Path(files[0].strip()).expanduser())
    config: Config = {}
    for argument in args:
        pairs: Config = {}
        position = 0
        text = argument.strip()
        while position < len(text):
            match = _PAIR.match(text, position)
            if match is None:
                raise ConfigError(
                    f"Cannot read {text[position:][:80]!r}; write key=value pairs, strings in quotes: "
                    """'epochs=3 name="some text"'."""
                )
            key, value = match.groups()
            if key in pairs:
                raise ConfigError(f"{key!r} is given twice; keep one of them.")
            pairs[key] = _value(key, value)
            position = match.end()
        config.update(pairs)
    return config


def _from_file(path: Path) -> Config:
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def _value(key: str, text: str) -> Scalar:
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"The value of {key!r}, {text!r}, is neither a number, true or false, nor a string in quotes."
        ) from error
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(
            f"The value of {key!r} is a {type(value).__name__}; numbers, booleans and strings can be sent."
        )
    return value


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Config:
    """Nested tables become dotted keys. ConfigError for a value that cannot be sent."""
    flat: Config = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{key}"] = value
        else:
            raise ConfigError(
                f"The value of {prefix + key!r} is a {type(value).__name__}; numbers, booleans and strings can be sent."
            )
    return flat


def fuse(app_config: Mapping[str, Scalar], overrides: Mapping[str, Scalar]) -> Config:
    """The app's configuration with the overrides in place. ConfigError for a key that the app does not have."""
    unknown = sorted(set(overrides) - set(app_config))
    if unknown:
        known = _some(sorted(app_config)) or "none"
        raise ConfigError(f"The app has no configuration key {_some([repr(key) for key in unknown])}; it has: {known}.")
    return {**app_config, **overrides}


def _some(names: Sequence[str], most: int = 20) -> str:
    shown = [name if len(name) <= 80 else f"{name[:80]}..." for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def to_edge(config: Mapping[str, Scalar]) -> dict[str, records_pb2.Scalar]:
    """For a `map<string, Scalar>` of the edge protocol."""
    return {key: _scalar_to(records_pb2.Scalar(), value) for key, value in config.items()}


def from_edge(proto: Mapping[str, records_pb2.Scalar]) -> Config:
    """From a `map<string, Scalar>` of the edge protocol; entries without a value are refused (ConfigError)."""
    return {key: _scalar_from(key, value, value.WhichOneof("scalar")) for key, value in proto.items()}


def to_appio(config: Mapping[str, Scalar]) -> dict[str, appio_pb2.Scalar]:
    """For a `map<string, Scalar>` of the interior protocol."""
    return {key: _scalar_to(appio_pb2.Scalar(), value) for key, value in config.items()}


def from_appio(proto: Mapping[str, appio_pb2.Scalar]) -> Config:
    """From a `map<string, Scalar>` of the interior protocol."""
    return {key: _scalar_from(key, value, value.WhichOneof("value")) for key, value in proto.items()}


def _scalar_to(proto: _S, value: Scalar) -> _S:
    if isinstance(value, bool):
        proto.bool = value
    elif isinstance(value, int):
        if not -_INT64_MAX - 1 <= value <= _UINT64_MAX:
            raise ConfigError(f"The number {value} does not fit into 64 bits; send a smaller one, or a text.")
        if value > _INT64_MAX:
            proto.uint64 = value
        else:
            proto.sint64 = value
    elif isinstance(value, float):
        proto.double = value
    elif isinstance(value, str):
        proto.string = value
    else:
        proto.bytes = value
    return proto


def _scalar_from(key: str, proto: Any, arm: str | None) -> Scalar:
    if arm is None:
        raise ConfigError(f"The value of {key!r} is missing.")
    value: Scalar = getattr(proto, arm)
    return value
