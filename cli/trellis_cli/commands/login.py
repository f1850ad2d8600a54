"""Log in to a SuperLink: open a page of its identity provider, and wait until you agreed there.

The login is kept where stock's flwr keeps it (credentials.yaml beside config.toml), so both are logged in. Pipelines
need none: set TRELLIS_OIDC_ISSUER, TRELLIS_CLIENT_ID and TRELLIS_CLIENT_SECRET_FILE.
"""

import argparse
import time
import webbrowser

from trellis_cli.arguments import add_format, add_superlink, superlink_of
from trellis_cli.errors import EXIT_OK, CliError, UsageError
from trellis_cli.output import Output

_LEAST_SECONDS = 1.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-browser", action="store_true", help="show the page's address only")
    add_format(parser)
    add_superlink(parser)


def execute(args: argparse.Namespace, out: Output) -> int:
    connection = superlink_of(args)
    if connection.insecure:
        raise UsageError(f"A login needs TLS, and {connection.source} says insecure.")

    from trellis_cli.control import Control
    from trellis_cli.credentials import CredentialFile, Tokens
    from trellis_cli.session import Nobody

    with Control(connection, Nobody()) as control:
        login = control.login_details()
        if login.authn_type != "oidc":
            raise CliError(f"The SuperLink wants a login of the kind {login.authn_type!r}, which is not known here.")
        page = login.verification_uri_complete
        if not page.startswith(("https://", "http://")) or not page.isprintable():
            raise CliError(f"The SuperLink names a page to log in on that is none: {page!r}.")
        out.note(f"Log in on this page: {page}")
        if not args.no_browser:
            webbrowser.open(page)
        interval = max(_LEAST_SECONDS, float(login.interval))
        until = time.monotonic() + login.expires_in
        while time.monotonic() < until:
            time.sleep(interval)
            answer = control.auth_tokens(login.device_code)
            if answer.access_token and answer.refresh_token:
                file = CredentialFile()
                file.save(connection.address, Tokens(answer.access_token, answer.refresh_token))
                out.say(f"Logged in to {connection.address}.")
                out.json({"success": True, "address": connection.address, "credentials": str(file.path)})
                return EXIT_OK
    raise CliError("Nobody agreed in time; log in again.")
