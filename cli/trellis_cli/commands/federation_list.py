"""List the federations that you see; with --federation NAME, show one."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--federation", metavar="NAME", help="show this one: its members, SuperNodes and runs")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli import views
    from trellis_cli.control import Control

    with Control(connection) as control:
        if args.federation is not None:
            views.show_federation(control.show_federation(args.federation), out)
            return EXIT_OK
        found = control.list_federations()
    if out.as_json:
        out.json({"success": True, "federations": [views.federation_json(one) for one in found]})
    else:
        out.table(views.FEDERATION_COLUMNS, [views.federation_row(one) for one in found])
    return EXIT_OK
