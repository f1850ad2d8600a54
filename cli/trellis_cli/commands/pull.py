"""Show the link under which the files that a finished run left behind can be fetched, for example with curl."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, identifier, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", type=identifier, metavar="RUN_ID")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli.control import Control

    with Control(connection) as control:
        url = control.pull_artifacts(args.run_id)
    out.say(url)
    out.json({"success": True, "url": url})
    return EXIT_OK
