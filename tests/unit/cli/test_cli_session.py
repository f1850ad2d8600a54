"""As whom the command line speaks: where logins are kept, and where a service account's secret goes."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from trellis_cli import control
from trellis_cli.connection import Connection
from trellis_cli.credentials import CredentialFile, Tokens
from trellis_cli.errors import CliError, UsageError
from trellis_cli.main import main
from trellis_cli.session import ServiceAccount, session_for
from trellis_wire.pb.edge import control_pb2 as pb

HERE = "superlink.example:9093"


def test_logins_are_for_their_owners_eyes_and_beside_stocks(tmp_path: Path) -> None:
    file = CredentialFile({"FLWR_HOME": str(tmp_path)})
    assert file.load(HERE) is None
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text("stocks: own\n")
    file.path.symlink_to(elsewhere)
    file.save(HERE, Tokens("access", "refresh"))
    assert not file.path.is_symlink()  # what it led to is as it was, and holds no token
    assert elsewhere.read_text() == "stocks: own\n"
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert yaml.safe_load(file.path.read_text())["stocks"] == "own"
    file.path.chmod(0o644)
    file.save("other:1", Tokens("a", "r"))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.load(HERE) == Tokens("access", "refresh")
    assert file.forget(HERE)
    assert file.load(HERE) is None
    assert file.load("other:1") == Tokens("a", "r")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@contextmanager
def provider(token_endpoint: str) -> Iterator[tuple[str, list[bytes]]]:
    """One on this machine that names this endpoint, and what was posted to it."""
    posted: list[bytes] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say({"token_endpoint": token_endpoint or f"{address}/token"})

        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["content-length"])))
            self._say({"access_token": "t", "expires_in": 300})

        def _say(self, told: dict[str, object]) -> None:
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Not in the tests' output."""

    server = HTTPServer(("127.0.0.1", 0), Answers)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield address, posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_service_accounts_secret_goes_to_its_provider() -> None:
    with provider("") as (address, posted):
        assert ServiceAccount(address, "me", "s3cret", None).tokens() == Tokens("t")
        assert b"client_secret=s3cret" in posted[0]


@pytest.mark.parametrize(
    "issuer",
    [
        "http://login.example",
        "http://localhost.login.example",
        "http://127.0.0.1.login.example",
        "http://localhost@a.b",
    ],
)
def test_a_service_accounts_secret_never_goes_in_the_clear(issuer: str) -> None:
    with pytest.raises(UsageError, match="in the clear"):
        ServiceAccount(issuer, "me", "s3cret", None).tokens()


def test_a_provider_that_wants_the_secret_in_the_clear_does_not_get_it() -> None:
    with provider("http://login.example/token") as (address, posted):
        with pytest.raises(CliError, match="in the clear"):
            ServiceAccount(address, "me", "s3cret", None).tokens()
        assert posted == []


def connection(*, insecure: bool) -> Connection:
    return Connection("mine", HERE, insecure, None, "", "a test")


def test_without_tls_nobody_logs_in_and_no_token_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["login", "--superlink", HERE, "--insecure"]) == 2
    assert "needs TLS" in capsys.readouterr().err
    environment = {"FLWR_HOME": str(tmp_path), "TRELLIS_CLIENT_ID": "me", "TRELLIS_CLIENT_SECRET": "s3cret"}
    CredentialFile(environment).save(HERE, Tokens("access", "refresh"))
    for environ in (environment, {"FLWR_HOME": str(tmp_path)}):
        assert session_for(connection(insecure=True), environ).tokens() is None
    with_tls = session_for(connection(insecure=False), {"FLWR_HOME": str(tmp_path)})
    assert with_tls.tokens() == Tokens("access", "refresh")


@pytest.mark.parametrize("page", ["", "file:///etc/passwd", "--new-window", "https://a.b/\x1b]0;owned\x07"])
def test_a_page_that_is_none_is_not_opened(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    details = pb.GetLoginDetailsResponse(authn_type="oidc", device_code="d", verification_uri_complete=page)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(control.Control, "login_details", lambda _self: details)
    assert main(["login", "--superlink", HERE]) == 1
    assert opened == []
    assert "that is none" in capsys.readouterr().err
