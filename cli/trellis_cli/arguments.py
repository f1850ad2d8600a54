"""Arguments that several commands share, and what they mean together."""

import argparse
from pathlib import Path

from trellis_cli.connection import Connection, direct, find
from trellis_cli.errors import UsageError


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("default", "json"), default="default", help="table and text, or JSON")


def identifier(text: str) -> int:
    """An argparse type: the id of a run or a SuperNode, an unsigned number of 64 bits."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is no id; `ls` and `supernode ls` list them")
    return int(text)


def add_superlink(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    """The SuperLink by name (both of stock's spellings: `[SUPERLINK]`, and `[APP] [FEDERATION]` of up to 1.25)."""
    if positional:
        parser.add_argument(
            "where", nargs="*", default=[], metavar="[APP] SUPERLINK", help="name of the SuperLink connection"
        )
    group = parser.add_argument_group("a SuperLink that no file names")
    group.add_argument("--superlink", metavar="HOST:PORT", help="speak to this SuperLink")
    group.add_argument("--insecure", action="store_true", help="without TLS")
    group.add_argument("--root-certificates", type=Path, metavar="FILE", help="PEM file with the roots to trust")
    # Stock accepts it on every command up to 1.25, and ignores it later.
    parser.add_argument("--federation-config", action="append", help=argparse.SUPPRESS)


def add_federation(parser: argparse.ArgumentParser) -> None:
    """What `up` and `demo` start."""
    parser.add_argument("--supernodes", type=int, default=3, metavar="N", help="how many sites (default: 3)")
    parser.add_argument(
        "--guest-python",
        type=Path,
        metavar="PATH",
        help="interpreter that hosts the apps, with flwr and what they import (default: the first python on PATH)",
    )
    parser.add_argument(
        "--isolation",
        choices=("process", "subprocess"),
        default="process",
        help="executors as processes of their own, or started by the SuperLink and the SuperNodes",
    )


def superlink_of(args: argparse.Namespace) -> Connection:
    """The connection that `where` or the flags of `add_superlink` mean."""
    where: list[str] = args.where
    if len(where) > 2:
        raise UsageError(f"Too many arguments: {' '.join(where)}. Name one SuperLink.")
    if len(where) == 2:
        return resolve(args, where[1], Path(where[0]))
    if where and _is_app(where[0]):
        return resolve(args, None, Path(where[0]))
    return resolve(args, where[0] if where else None, Path())


def resolve(args: argparse.Namespace, name: str | None, app: Path) -> Connection:
    """The connection that a name (or none) means for this app, unless the flags give an address."""
    roots: Path | None = args.root_certificates
    if args.superlink is not None:
        if name is not None:
            raise UsageError(f"Give the SuperLink's name ({name}) or --superlink {args.superlink}, not both.")
        return direct(args.superlink, insecure=args.insecure, root_certificates=roots)
    if args.insecure or roots is not None:
        raise UsageError("--insecure and --root-certificates go with --superlink HOST:PORT.")
    return find(name, app)


def _is_app(text: str) -> bool:
    return (Path(text) / "pyproject.toml").is_file()
