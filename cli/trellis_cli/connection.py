"""Which SuperLink is meant: named on the command line, in the app's pyproject.toml, or in config.toml.

Both of stock's places are read and neither is ever written: `[tool.flwr.federations]` in the app's pyproject.toml
(Flower up to 1.25) and `[superlink]` in `$FLWR_HOME/config.toml`, by default `~/.flwr/config.toml` (1.26 on). Of two
that could be meant, the one closer to the app wins: the command line, then pyproject.toml, then config.toml.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trellis_cli.errors import UsageError

_SIMULATIONS = (":local:", ":local-in-memory:")
_PYPROJECT_TABLE = "tool.flwr.federations"
_CONFIG_TABLE = "superlink"


@dataclass(frozen=True)
class Connection:
    """A SuperLink to speak to. Without `insecure` it is TLS, by the system's roots unless others are given."""

    name: str
    address: str  # host:port
    insecure: bool
    root_certificates: Path | None
    federation: str  # "" leaves the choice to the SuperLink
    source: str  # where this was found, for messages


@dataclass(frozen=True)
class _Place:
    """One of the two files with its table of connections."""

    file: Path
    table: str
    connections: Mapping[str, Any]
    default: str | None
    base: Path | None  # what relative certificate paths are relative to; None refuses them, as stock does

    def describe(self, name: str) -> str:
        return f"[{self.table}.{name}] of {self.file}"


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where Flower 1.26 and later keep their connections."""
    home = environ.get("FLWR_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".flwr") / "config.toml"


def direct(address: str, *, insecure: bool, root_certificates: Path | None, federation: str = "") -> Connection:
    """The SuperLink that was given as HOST:PORT on the command line."""
    return _checked(
        Connection(address, address, insecure, root_certificates, federation, "--superlink"),
        "Give --superlink HOST:PORT, for example --superlink 127.0.0.1:9093 --insecure.",
    )


def find(name: str | None, app: Path, environ: Mapping[str, str] = os.environ) -> Connection:
    """The connection of that name, or the default one. UsageError says which file, which key, what to write."""
    places = [place for place in (_pyproject(app / "pyproject.toml"), _config(config_file(environ))) if place]
    for place in places:
        wanted = name if name is not None else place.default
        if wanted is None:
            continue
        if wanted in place.connections:
            return _read(place, wanted)
        if name is None:
            raise UsageError(
                f"{place.file} says default = {wanted!r} in [{place.table}], but has no [{place.table}.{wanted}]. "
                f"{_known(places)}"
            )
    if name is not None:
        raise UsageError(f"No SuperLink connection is called {name!r}. {_known(places)} {_how_to_add(name, environ)}")
    named = [(place, one) for place in places for one in place.connections]
    if len(named) == 1:
        return _read(*named[0])
    if named:
        raise UsageError(f'Which SuperLink? {_known(places)} Name one, or write default = "NAME" there.')
    raise UsageError(f"No SuperLink is configured. {_how_to_add('mine', environ)}")


def connection_names(environ: Mapping[str, str] = os.environ) -> tuple[list[str], str | None]:
    """The names in config.toml and the default among them, as `config list` shows them."""
    place = _config(config_file(environ))
    return (list(place.connections), place.default) if place else ([], None)


def _known(places: list[_Place]) -> str:
    found = [f"{', '.join(place.connections)} (in {place.file})" for place in places if place.connections]
    return f"There are: {'; '.join(found)}." if found else "There are none so far."


def _how_to_add(name: str, environ: Mapping[str, str]) -> str:
    return (
        f'Write [superlink.{name}] with address = "HOST:9093" into {config_file(environ)}, or give '
        "--superlink HOST:PORT [--insecure | --root-certificates FILE]."
    )


def _load(file: Path) -> Mapping[str, Any] | None:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}.") from error


def _pyproject(file: Path) -> _Place | None:
    data: Any = _load(file)
    for key in _PYPROJECT_TABLE.split("."):
        data = data.get(key) if isinstance(data, Mapping) else None
    return _place(file, _PYPROJECT_TABLE, data, file.parent)


def _config(file: Path) -> _Place | None:
    data = _load(file)
    return _place(file, _CONFIG_TABLE, data.get(_CONFIG_TABLE) if data else None, None)


def _place(file: Path, table: str, data: Any, base: Path | None) -> _Place | None:
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise UsageError(f"[{table}] of {file} must be a table.")
    default = data.get("default")
    if default is not None and not isinstance(default, str):
        raise UsageError(f"`default` in [{table}] of {file} must be the name of a connection, in quotes.")
    connections = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    return _Place(file, table, connections, default, base)


def _read(place: _Place, name: str) -> Connection:
    table, where = place.connections[name], place.describe(name)

    def get(key: str, kind: type[Any], what: str) -> Any:
        value = table.get(key)
        if value is not None and not isinstance(value, kind):
            raise UsageError(f"`{key}` in {where} is {value!r}; it must be {what}.")
        return value

    address = get("address", str, 'text like "superlink.example.org:9093"')
    if address is None or address in _SIMULATIONS:
        said = "has no address" if address is None else f"says address = {address!r}"
        raise UsageError(
            f"{where} {said}: stock Flower then simulates a federation in one process, which Trellis does not. "
            "For a federation on this machine run `trellis up` in another terminal and give "
            "--superlink 127.0.0.1:9093 --insecure (`make demo` does all of it once); for a real one write its "
            f'address there: address = "HOST:9093".'
        )
    certificates = get("root-certificates", str, "the path of a PEM file")
    roots = None
    if certificates is not None:
        roots = Path(certificates).expanduser()
        if not roots.is_absolute():
            if place.base is None:
                raise UsageError(f"`root-certificates` in {where} must be an absolute path, not {certificates!r}.")
            roots = place.base / roots
    insecure = bool(get("insecure", bool, "true or false"))
    federation = get("federation", str, "the name of a federation") or ""
    connection = Connection(name, address, insecure, roots, federation, where)
    return _checked(connection, f'Write address = "HOST:PORT" in {where}.')


def _checked(connection: Connection, advice: str) -> Connection:
    address = connection.address
    if "://" in address:
        raise UsageError(f"The SuperLink's address {address!r} must be host:port without a scheme. {advice}")
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"The SuperLink's address {address!r} has no port (the usual one is 9093). {advice}")
    roots = connection.root_certificates
    if roots is not None and connection.insecure:
        raise UsageError(
            f"{connection.source} asks for an unencrypted connection (insecure) and names root certificates: "
            "take one of the two out."
        )
    if roots is not None and not roots.is_file():
        raise UsageError(f"The root certificates {roots} (from {connection.source}) do not exist.")
    return connection
