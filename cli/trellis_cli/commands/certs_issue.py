"""Issue the certificate of one role, new or again, from the CAs that are there.

ROLE begins with superlink, serverapp, supernode or clientapp: `supernode-berlin` gets a SuperNode's certificate.
"""

import argparse

from trellis_cli.commands.certs_options import add_access, add_directory, add_names, mode_of, owner_of
from trellis_cli.errors import EXIT_OK, UsageError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", metavar="ROLE")
    parser.add_argument("--replace", action="store_true", help="also where the role has a certificate")
    add_names(parser, "the role")
    add_access(parser)
    add_directory(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    from trellis_cli.certificates import Access, Deployment, hosts

    deployment = Deployment(args.directory, Access(mode_of(args), owner_of(args)))
    if args.role in deployment.roles() and not args.replace:
        raise UsageError(
            f"{args.role} has a certificate already; --replace puts another in its place, `certs renew {args.role}` "
            "one with the same names."
        )
    names = hosts(args.role, args.namespace, args.name)
    deployment.issue(args.role, names, args.days)
    out.json({"success": True, "role": args.role, "names": names})
    out.say(f"Issued {args.directory / args.role} for {', '.join(names)}.")
    return EXIT_OK
