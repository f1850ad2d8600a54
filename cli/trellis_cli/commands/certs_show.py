"""Show the certificates of a deployment: for whom, from whom, until when.

The exit code is 1 when one of them has expired or does not fit its key or CA.
"""

import argparse

from trellis_cli.commands.certs_options import add_directory
from trellis_cli.errors import EXIT_FAILED, EXIT_OK, UsageError
from trellis_cli.output import Cell, Output

_STYLES = {"valid": "green", "expiring": "yellow"}


def arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    from datetime import UTC, datetime

    from trellis_cli.certificates import Deployment

    now = datetime.now(UTC)
    entries = list(Deployment(args.directory).entries())
    if not entries:
        raise UsageError(f"There are no certificates in {args.directory}; `certs init` makes them.")
    rows, documents = [], []
    for entry in entries:
        facts, state = entry.facts, entry.state(now)
        use = "CA" if facts.is_ca else "server" if facts.for_servers else "client"
        days = (facts.not_after - now).days
        until = f"{facts.not_after:%Y-%m-%d} ({days} days)"
        style = _STYLES.get(state, "red")
        said = state if entry.problem is None else f"{state}: {entry.problem}"
        cells = (entry.name, use, facts.issuer, until, said, ", ".join(facts.names))
        rows.append([Cell(text, style if text == said else "") for text in cells])
        documents.append(
            {
                "name": entry.name,
                "path": str(entry.path.absolute()),
                "use": use.lower(),
                "issuer": facts.issuer,
                "names": list(facts.names),
                "not-before": facts.not_before.isoformat(),
                "not-after": facts.not_after.isoformat(),
                "days-left": days,
                "state": state,
                "problem": entry.problem,
            }
        )
    good = all(document["state"] in ("valid", "expiring") for document in documents)
    if out.as_json:
        out.json({"success": good, "certificates": documents})
    else:
        out.table(("name", "use", "issuer", "expires", "state", "names"), rows)
    return EXIT_OK if good else EXIT_FAILED
