"""Settings of a service: one pydantic model becomes its flags, its environment variables and its secret files.

Every field `grace_period` of a `Settings` class can be set by `--grace-period` and by `TRELLIS_GRACE_PERIOD`; a flag
beats the environment, the environment beats the default, and a variable that is empty is as if it were not there (so
that Compose's `${X:-}` and a layer over another can say "not set"). A field marked secret is read from a file only:
`--name-file PATH` or `TRELLIS_NAME_FILE`. Nothing else in Trellis reads configuration.
"""

import argparse
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from trellis_kit import logs

ENV_PREFIX = "TRELLIS_"
# Set by Trellis's own programs for each other; never a setting of a service.
_FOREIGN = frozenset({"TRELLIS_HOME", "TRELLIS_DEBUG"})
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


class Settings(BaseModel):
    """Base of a service's settings; every field carries a description, which is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    _secret_files: dict[str, Path] = PrivateAttr(default_factory=dict)

    @property
    def secret_files(self) -> tuple[Path, ...]:
        """The files that secrets were read from."""
        return tuple(self._secret_files.values())

    def secret_file(self, field: str) -> Path | None:
        """The file that this secret was read from."""
        return self._secret_files.get(field)


@dataclass(frozen=True)
class StockFlag:
    """A flag of Flower's own program that is accepted and means nothing here; using it warns once with `note`."""

    names: tuple[str, ...]
    takes_value: bool
    note: str


# ---- value types that several services use --------------------------------------------------------------------

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\s*", value)
    if match is None:
        raise ValueError("expected a duration such as 30, 1.5s, 10m, 12h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*(B|KiB|MiB|GiB|TiB|)\s*", value)
    if match is None:
        raise ValueError("expected a number of bytes such as 1048576, 512MiB or 2GiB")
    return int(match[1]) * _SIZES[match[2]]


def _address(value: object) -> object:
    if not isinstance(value, str):
        return value
    split_address(value)
    return value


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; ValueError says what is wrong."""
    host, colon, port = address.strip().rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected host:port, for example 0.0.0.0:9092 or [::]:9092")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("expected an IPv6 address in brackets, for example [::]:9092")
    if not host:
        raise ValueError("expected a host before the port, for example 0.0.0.0:9092")
    return host, int(port)


def reachable(bound: str) -> str:
    """An address to connect to from this machine, for one that is listened on."""
    host, port = split_address(bound)
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
"""A duration; text may carry a unit (`30`, `1.5s`, `10m`, `12h`, `7d`)."""

Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
"""An amount of bytes; text may carry a binary unit (`512MiB`)."""

Address = Annotated[str, BeforeValidator(_address)]
"""`host:port`; port 0 lets the system choose."""


# ---- loading --------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class _Option:
    """How one field is set from outside."""

    field: str
    flags: tuple[str, ...]
    variable: str
    help: str
    is_bool: bool
    is_list: bool
    is_secret: bool

    @classmethod
    def of(cls, name: str, info: FieldInfo) -> "_Option":
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        secret = bool(extra.get("secret"))
        suffix = "_file" if secret else ""
        aliases = extra.get("flags") or []
        assert isinstance(aliases, list)
        kind = _plain_type(info.annotation)
        return cls(
            field=name,
            flags=("--" + (name + suffix).replace("_", "-"), *(str(alias) for alias in aliases)),
            variable=ENV_PREFIX + (name + suffix).upper(),
            help=_help(info),
            is_bool=kind is bool,
            is_list=typing.get_origin(kind) in (tuple, list, frozenset, set),
            is_secret=secret,
        )

    def parse_text(self, text: str) -> object:
        """The raw value of an environment variable."""
        if self.is_bool:
            lowered = text.strip().lower()
            if lowered in _TRUE or lowered in _FALSE:
                return lowered in _TRUE
            raise ValueError("expected true or false")
        if self.is_list:
            return [part.strip() for part in text.split(",") if part.strip()]
        return text


def variables(cls: type[Settings]) -> frozenset[str]:
    """The names of the environment variables that set its fields."""
    return frozenset(_Option.of(name, info).variable for name, info in cls.model_fields.items())


def load(
    cls: type[S],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
    stock_flags: Sequence[StockFlag] = (),
    environ: Mapping[str, str] = os.environ,
) -> S:
    """Read a service's settings from its flags and its environment.

    Ends the process with status 2 and one sentence when a value is wrong (which one, where it came from, what is
    allowed); `--help` and `--version` end it with 0. Warns of `TRELLIS_*` variables that the service does not know
    and of stock flags that mean nothing here.
    """
    options = [_Option.of(name, info) for name, info in cls.model_fields.items()]
    parser = _parser(cls, prog, options, stock_flags)
    flags = vars(parser.parse_args(sys.argv[1:] if argv is None else list(argv)))

    values: dict[str, object] = {}
    secret_files: dict[str, Path] = {}
    origins: dict[str, tuple[str, str]] = {}
    for option in options:
        raw: object
        if (given := flags.get(option.field)) is not None:
            raw, origin = given, option.flags[0]
        elif text := environ.get(option.variable):
            origin = option.variable
            try:
                raw = text if option.is_secret else option.parse_text(text)
            except ValueError as error:
                _refuse(prog, origin, repr(text), str(error))
        else:
            continue
        origins[option.field] = (origin, "its content" if option.is_secret else _shown(raw))
        values[option.field] = _read_secret(prog, origin, str(raw)) if option.is_secret else raw
        if option.is_secret:
            secret_files[option.field] = Path(str(raw))

    try:
        settings = cls.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if name in origins:
            _refuse(prog, origins[name][0], origins[name][1], message)
        if name:  # the default itself, or a required field
            option = next(option for option in options if option.field == name)
            _refuse(prog, f"{option.flags[0]} (or {option.variable})", "its absence", message)
        _refuse(prog, "the settings together", "this combination", message)

    settings._secret_files = secret_files
    for stock in stock_flags:
        if flags.get(_stock_dest(stock)) is not None:
            logs.early(f"{stock.names[0]} is accepted because Flower's program has it: {stock.note}")
    known = {option.variable for option in options} | _FOREIGN
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in known and environ[variable]:
            logs.early(f"{variable} is set but is no setting of {prog}; see {prog} --help")
    return settings


def _parser(
    cls: type[Settings], prog: str, options: Sequence[_Option], stock_flags: Sequence[StockFlag]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=(cls.__doc__ or "").strip(), allow_abbrev=False, argument_default=None
    )
    parser.add_argument("-V", "--version", action="version", version=f"{prog} {metadata.version('trellis-kit')}")
    for option in options:
        text = f"{option.help} [{option.variable}]".replace("%", "%%")
        if option.is_bool:
            group = parser.add_mutually_exclusive_group()
            group.add_argument(*option.flags, dest=option.field, action="store_const", const=True, help=text)
            negations = ["--no-" + flag.removeprefix("--") for flag in option.flags]
            group.add_argument(*negations, dest=option.field, action="store_const", const=False, help=argparse.SUPPRESS)
        else:
            metavar = "PATH" if option.is_secret else "VALUE"
            action = "append" if option.is_list else "store"
            parser.add_argument(*option.flags, dest=option.field, action=action, metavar=metavar, help=text)
    for stock in stock_flags:
        if stock.takes_value:
            parser.add_argument(*stock.names, dest=_stock_dest(stock), help=argparse.SUPPRESS)
        else:
            parser.add_argument(
                *stock.names, dest=_stock_dest(stock), action="store_const", const=True, help=argparse.SUPPRESS
            )
    return parser


def _stock_dest(stock: StockFlag) -> str:
    return "stock:" + stock.names[0]


def _plain_type(annotation: Any) -> Any:
    """The type behind Annotated[...] and Optional[...]."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _plain_type(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(annotation) if arm is not type(None)]
        return _plain_type(arms[0]) if len(arms) == 1 else annotation
    return annotation


def _help(info: FieldInfo) -> str:
    text = info.description or ""
    kind = _plain_type(info.annotation)
    if typing.get_origin(kind) is typing.Literal:
        text += f" ({', '.join(str(choice) for choice in typing.get_args(kind))})"
    if info.is_required():
        return f"{text} (required)".strip()
    default = info.get_default(call_default_factory=True, validated_data={})
    if default in (None, "", (), [], False):
        return text
    return f"{text} (default: {default})".strip()


def _read_secret(prog: str, origin: str, path: str) -> str:
    try:
        found = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        _refuse(prog, origin, repr(path), f"expected a readable file with the secret in it ({reason})")
    if not found:  # an empty secret would be shown by whoever shows none
        _refuse(prog, origin, repr(path), "expected a file with the secret in it, and it is empty")
    return found


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(repr(item) for item in value)
    return repr(value)


def _refuse(prog: str, origin: str, value: str, allowed: str) -> NoReturn:
    print(f"{prog}: {origin}: {value} is not accepted: {allowed.rstrip('.')}.", file=sys.stderr)
    raise SystemExit(2)
