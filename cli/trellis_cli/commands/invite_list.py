"""List invitations: those that you sent and those that you received."""

import argparse

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK
from trellis_cli.output import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="also those that are not open any more")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)

    from trellis_cli import views
    from trellis_cli.control import Control

    with Control(connection) as control:
        answer = control.invitations()
    sent, received = (
        [one for one in invitations if args.verbose or one.status == "pending"]
        for invitations in (answer.created_invitations, answer.received_invitations)
    )
    if out.as_json:
        out.json(
            {
                "success": True,
                "created-invitations": [views.invitation_json(one, sent=True) for one in sent],
                "received-invitations": [views.invitation_json(one, sent=False) for one in received],
            }
        )
    elif sent or received:
        rows = [views.invitation_row(one, sent=True) for one in sent]
        out.table(views.INVITATION_COLUMNS, rows + [views.invitation_row(one, sent=False) for one in received])
    else:
        out.note("No open invitations.")
    return EXIT_OK
