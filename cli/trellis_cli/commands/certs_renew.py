"""Renew certificates that expire soon, with the same names. Services take them up without a restart.

Each gets a new key. Those that are not named and expire later are left as they are.
"""

import argparse

from trellis_cli.commands.certs_options import RENEW_DAYS, add_access, add_directory, mode_of, owner_of, positive
from trellis_cli.errors import EXIT_OK, UsageError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", nargs="*", metavar="ROLE", help="renew these, whenever they expire")
    parser.add_argument("--all", action="store_true", help="renew all, whenever they expire")
    parser.add_argument(
        "--within",
        type=positive("days"),
        default=RENEW_DAYS,
        metavar="DAYS",
        help=f"renew what expires within so many days (default: {RENEW_DAYS})",
    )
    add_access(parser)
    add_directory(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    from datetime import UTC, datetime, timedelta

    from trellis_cli.certificates import AUTHORITIES, Access, Deployment

    deployment = Deployment(args.directory, Access(mode_of(args), owner_of(args)))
    cas = {authority.name for authority in AUTHORITIES}
    entries = [entry for entry in deployment.entries() if entry.name not in cas]
    if not entries:
        raise UsageError(f"There are no certificates in {args.directory}; `certs init` makes them.")
    if unknown := set(args.role) - {entry.name for entry in entries}:
        raise UsageError(f"{', '.join(sorted(unknown))}: no certificate in {args.directory}; `certs issue` makes one.")
    soon, now = timedelta(days=args.within), datetime.now(UTC)
    renewed = [
        entry.name
        for entry in entries
        if args.all or entry.name in args.role or (not args.role and entry.state(now, soon) in ("expiring", "expired"))
    ]
    for role in renewed:
        deployment.renew(role, args.days)
    out.json({"success": True, "renewed": renewed})
    out.say(f"Renewed: {', '.join(renewed)}." if renewed else f"Nothing expires within {args.within} days.")
    return EXIT_OK
