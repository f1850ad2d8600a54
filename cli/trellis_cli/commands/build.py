"""Pack an app into a FAB file in the current folder."""

import argparse
import json
from pathlib import Path

from trellis_cli.arguments import add_format
from trellis_cli.errors import EXIT_OK, CliError, UsageError
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--app", type=Path, default=Path(), metavar="DIR", help="the app (default: this folder)")
    parser.add_argument(
        "--fab-format",
        choices=("1.24", "1.41"),
        default="1.41",
        help="byte for byte as `flwr build` of that release writes it (default: 1.41)",
    )
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="write FAB.sig beside it, signed with this Ed25519 key (OpenSSH file)"
    )
    add_format(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    from trellis_wire import fab

    from trellis_cli.components import problem
    from trellis_cli.submit import read, signature, signature_file

    app = args.app.expanduser().resolve()
    if app.is_file():
        raise UsageError(f"{app} is a file; name the app's folder.")
    content = read(app, args.fab_format)
    try:
        info = fab.inspect(content)
    except fab.FabError as error:
        raise UsageError(f"{app} cannot be packed: {error}") from error
    if (wrong := problem(content, info)) is not None:
        raise UsageError(f"{app} cannot be packed: {wrong}")
    signatures = {} if args.sign is None else signature(info.fab_hash, args.sign)
    target = Path(info.filename)
    try:
        target.write_bytes(content)
        signature_file(target).unlink(missing_ok=True)  # of an earlier build
        if signatures:
            signature_file(target).write_text(json.dumps(signatures, indent=1) + "\n")
    except OSError as error:
        raise CliError(f"{target} cannot be written: {error.strerror}.") from error
    out.say(f"Wrote {target} (sha256 {info.fab_hash})")
    for key_id in signatures:
        out.say(f"Wrote {signature_file(target)}, signed by {key_id}")
    out.json(
        {
            "success": True,
            "fab-id": info.fab_id,
            "fab-name": info.name,
            "fab-version": info.version,
            "fab-hash": info.fab_hash[:8],
            "fab-filename": info.filename,
        }
    )
    return EXIT_OK
