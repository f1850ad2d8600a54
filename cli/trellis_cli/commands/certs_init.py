"""Make the CAs of a deployment and a certificate for each of its roles.

DIR/ca.crt is what SuperNodes and command lines trust. DIR/<role>/ has tls.crt, tls.key and ca.crt (whom the role
trusts), for servers also executor-ca.crt. The CAs' keys (DIR/*.key) belong where nobody else comes: services do not
need them. For machines apart: --only server where the SuperLink is; at each site --only site with a copy of ca.crt.
"""

import argparse
from pathlib import Path

from trellis_cli.commands.certs_options import (
    CA_DAYS,
    add_access,
    add_directory,
    add_names,
    mode_of,
    owner_of,
    positive,
)
from trellis_cli.errors import EXIT_OK, UsageError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--supernodes", type=positive("SuperNodes"), default=3, metavar="N", help="how many sites (default: 3)"
    )
    parser.add_argument("--only", choices=("server", "site"), help="the SuperLink's side, or one site's, alone")
    parser.add_argument("--network-ca", type=Path, metavar="FILE", help="with --only site: the deployment's ca.crt")
    add_names(parser, "the SuperLink (with --only site: each SuperNode)")
    parser.add_argument("--missing", action="store_true", help="keep what is there and make what is not")
    parser.add_argument(
        "--ca-days", type=positive("days"), default=CA_DAYS, help=f"how long the CAs are valid (default: {CA_DAYS})"
    )
    add_access(parser)
    add_directory(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    from trellis_cli.certificates import NETWORK, SERVERAPPS, SITE, Access, Deployment, hosts

    if (args.only == "site") != (args.network_ca is not None):
        raise UsageError("--only site and --network-ca FILE go together: a site trusts the SuperLink by its CA.")
    deployment = Deployment(args.directory, Access(mode_of(args), owner_of(args)))
    own = {None: (NETWORK, SERVERAPPS, SITE), "server": (NETWORK, SERVERAPPS), "site": (SITE,)}[args.only]
    there = [one.name for one in (*own, NETWORK) if deployment.has(one)]
    if there and not args.missing:
        raise UsageError(
            f"{args.directory} has CAs already ({', '.join(dict.fromkeys(there))}), and what they signed would be "
            "worth nothing without them. --missing keeps them and adds what is not there; `certs renew` renews "
            "certificates; for new CAs give another --directory."
        )
    made: list[str] = []
    for authority in own:
        if not deployment.has(authority):
            deployment.make_authority(authority, args.ca_days)
            made.append(authority.name)
    if args.network_ca is not None and not deployment.has(NETWORK):
        deployment.add_trusted(NETWORK, args.network_ca)
    server = ["superlink", "serverapp"]
    site = [f"{kind}-{number}" for number in range(1, args.supernodes + 1) for kind in ("supernode", "clientapp")]
    known = deployment.roles()
    named = "supernode" if args.only == "site" else "superlink"
    for role in {None: [*server, *site], "server": server, "site": site}[args.only]:
        if role not in known:
            more = args.name if role.startswith(named) else []
            deployment.issue(role, hosts(role, args.namespace, more), args.days)
            made.append(role)
    out.json({"success": True, "directory": str(args.directory.absolute()), "made": made})
    out.say(f"Made in {args.directory}: {', '.join(made)}." if made else f"Everything is in {args.directory} already.")
    out.note("Keep the CAs' keys (*.key) away from the services. docs/secure.md says which flag gets which file.")
    return EXIT_OK
