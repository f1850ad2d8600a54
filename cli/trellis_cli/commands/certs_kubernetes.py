"""Keep a deployment's certificates in Kubernetes' Secrets; the chart's hook runs this in a pod.

Makes what is missing, CAs too, issues anew what ends soon or whose names have changed, and keeps the rest. Each
ROLE has a Secret with tls.crt, tls.key and ca.crt, servers' also executor-ca.crt; the CAs and their keys are in one of
their own.
"""

import argparse
from pathlib import Path

from trellis_cli.arguments import add_format
from trellis_cli.commands.certs_options import CA_DAYS, LEAF_DAYS, RENEW_DAYS, positive
from trellis_cli.errors import EXIT_OK, UsageError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", nargs="+", metavar="ROLE=SECRET", help="superlink=fl-superlink-tls, for example")
    parser.add_argument("--authorities", required=True, metavar="SECRET", help="where the CAs and their keys are")
    parser.add_argument("--namespace", metavar="NS", help="of the Secrets (default: the pod's)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="ROLE=HOST",
        help="a name or address under which a role is reached; may be given several times",
    )
    parser.add_argument("--network-ca", type=Path, metavar="FILE", help="the ca.crt of a SuperLink elsewhere")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="for Secrets that are made")
    parser.add_argument("--days", type=positive("days"), default=LEAF_DAYS, help=f"valid for (default: {LEAF_DAYS})")
    parser.add_argument(
        "--within",
        type=positive("days"),
        default=RENEW_DAYS,
        metavar="DAYS",
        help=f"renew what expires within so many days (default: {RENEW_DAYS})",
    )
    parser.add_argument(
        "--ca-days", type=positive("days"), default=CA_DAYS, help=f"how long new CAs are valid (default: {CA_DAYS})"
    )
    add_format(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    import tempfile
    from datetime import timedelta

    from trellis_cli.cluster_certificates import Plan, provide
    from trellis_cli.secrets import Secrets

    roles, names = _pairs(args.role, "ROLE=SECRET"), _pairs(args.name, "--name ROLE=HOST")
    if unknown := {role for role, _ in names} - {role for role, _ in roles}:
        raise UsageError(f"--name: {', '.join(sorted(unknown))} is not among the roles that were given.")
    plan = Plan(
        authorities=args.authorities,
        roles=dict(roles),
        names={role: [host for one, host in names if one == role] for role, _ in roles},
        labels=dict(_pairs(args.label, "--label KEY=VALUE")),
        network_ca=args.network_ca,
        days=args.days,
        within=timedelta(days=args.within),
        ca_days=args.ca_days,
    )
    with tempfile.TemporaryDirectory(prefix="trellis-certs-") as folder:  # for its owner only
        issued = provide(Secrets.of_pod(args.namespace), Path(folder), plan)
    out.json({"success": True, "issued": [{"name": name, "why": why} for name, why in issued]})
    for name, why in issued:
        out.say(f"Issued {name}: {why}.")
    if not issued:
        out.say(f"All certificates are good for {args.within} days at least.")
    return EXIT_OK


def _pairs(words: list[str], form: str) -> list[tuple[str, str]]:
    pairs = [word.partition("=") for word in words]
    for word, (key, _, value) in zip(words, pairs, strict=True):
        if not (key and value):
            raise UsageError(f"{word!r}: expected {form}.")
    return [(key, value) for key, _, value in pairs]
