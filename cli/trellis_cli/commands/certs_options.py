"""Arguments that the `certs` commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path

from trellis_cli.arguments import add_format
from trellis_cli.errors import UsageError

DIRECTORY = Path("certs")
LEAF_DAYS = 397
CA_DAYS = 3650
RENEW_DAYS = 30


def add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory", type=Path, default=DIRECTORY, metavar="DIR", help=f"where they are (default: {DIRECTORY})"
    )
    add_format(parser)


def add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=positive("days"), default=LEAF_DAYS, help=f"valid for (default: {LEAF_DAYS})")
    parser.add_argument(
        "--key-mode",
        choices=("600", "640", "440", "400"),
        help="who may read the roles' keys (default: 600, their owner; renewed ones: as before)",
    )
    parser.add_argument(
        "--owner", metavar="UID[:GID]", help="whose the roles' keys are, as a number; containers run as 49999"
    )


def add_names(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help=f"a name or address more under which {whose} is reached; may be given several times",
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NS",
        help="Kubernetes namespace whose service names shall be good; may be given several times",
    )


def positive(what: str) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or not 0 < int(text) < 100_000:
            raise argparse.ArgumentTypeError(f"expected a number of {what}, not {text!r}")
        return int(text)

    return number


def mode_of(args: argparse.Namespace) -> int | None:
    return None if args.key_mode is None else int(args.key_mode, 8)


def owner_of(args: argparse.Namespace) -> tuple[int, int] | None:
    if args.owner is None:
        return None
    uid, _, gid = args.owner.partition(":")
    gid = gid or uid
    if not (uid.isdigit() and gid.isdigit()):
        raise UsageError(f"--owner: expected numbers as in 49999 or 49999:49999, not {args.owner!r}.")
    return int(uid), int(gid)
