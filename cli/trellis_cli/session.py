"""As whom the command line speaks to a SuperLink: nobody, who logged in, or a service account."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from trellis_kit.tls import ClientTls, client_context

from trellis_cli.connection import Connection
from trellis_cli.credentials import CredentialFile, Tokens
from trellis_cli.errors import CliError, Unreachable, UsageError

ACCESS, REFRESH = "flwr-oidc-access-token", "flwr-oidc-refresh-token"
"""Metadata over gRPC, both ways (WIRE.md 3.7)."""

ISSUER: Final = "TRELLIS_OIDC_ISSUER"
CLIENT_ID: Final = "TRELLIS_CLIENT_ID"
SECRET: Final = "TRELLIS_CLIENT_SECRET"
SECRET_FILE: Final = "TRELLIS_CLIENT_SECRET_FILE"
CA_CERTFILE: Final = "TRELLIS_OIDC_CA_CERTFILE"

_EARLY: Final = 30.0
"""Seconds before its end that a service account's token is replaced."""
_SECONDS: Final = 15.0


class Session(ABC):
    """Tokens for one SuperLink, renewed in whichever way they are."""

    @abstractmethod
    def tokens(self) -> Tokens | None:
        """What to send along; None for nobody. CliError."""

    @abstractmethod
    def renewed(self, tokens: Tokens) -> None:
        """The SuperLink gave new ones."""


class Nobody(Session):
    def tokens(self) -> Tokens | None:
        return None

    def renewed(self, tokens: Tokens) -> None:
        """Nothing to renew."""


class StoredLogin(Session):
    """Who said `login` before."""

    def __init__(self, address: str, file: CredentialFile, tokens: Tokens) -> None:
        self._address = address
        self._file = file
        self._tokens = tokens

    def tokens(self) -> Tokens | None:
        return self._tokens

    def renewed(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._file.save(self._address, tokens)


class ServiceAccount(Session):
    """A client of the provider with a secret, for pipelines (OAuth 2.0 client credentials, RFC 6749 4.4)."""

    def __init__(self, issuer: str, client_id: str, secret: str, ca_certfile: Path | None) -> None:
        self._issuer = issuer.rstrip("/")
        self._form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
        self._ca_certfile = ca_certfile
        self._tokens: Tokens | None = None
        self._until = 0.0

    def tokens(self) -> Tokens | None:
        if self._tokens is None or time.monotonic() > self._until:
            self._fetch()
        return self._tokens

    def renewed(self, tokens: Tokens) -> None:
        """Never: without a refresh token nothing is renewed."""

    def _fetch(self) -> None:
        import httpx  # takes its time, and few command lines speak for a service account

        if not _closed(self._issuer):
            raise UsageError(f"{ISSUER} must begin with https://: the secret would go there in the clear.")
        try:
            context = client_context(ClientTls(self._ca_certfile))
            with httpx.Client(verify=context, timeout=_SECONDS) as http:
                found = http.get(f"{self._issuer}/.well-known/openid-configuration")
                endpoint = str(found.raise_for_status().json()["token_endpoint"])
                if not _closed(endpoint):
                    raise CliError(
                        f"{self._issuer} wants the secret in the clear, at {endpoint!r}; it has to be https://."
                    )
                answer = http.post(endpoint, data=self._form)
                told = answer.json()
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"The identity provider {self._issuer} does not answer as one: {error}.") from error
        if answer.status_code != 200 or not isinstance(told.get("access_token"), str):
            why = told.get("error_description") or told.get("error") or f"status {answer.status_code}"
            raise CliError(f"The service account {self._form['client_id']} was refused: {why}.")
        lifetime = told.get("expires_in")
        self._tokens = Tokens(told["access_token"])
        self._until = time.monotonic() + max(0.0, (lifetime if isinstance(lifetime, int) else 60) - _EARLY)


def _closed(address: str) -> bool:
    """Whether nobody on the way reads what goes there."""
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))


def session_for(connection: Connection, environ: Mapping[str, str] = os.environ) -> Session:
    """A service account where the environment names one, then who logged in; never without TLS. UsageError."""
    if connection.insecure:
        return Nobody()
    if client_id := environ.get(CLIENT_ID):
        return _service_account(client_id, environ)
    file = CredentialFile(environ)
    tokens = file.load(connection.address)
    return Nobody() if tokens is None else StoredLogin(connection.address, file, tokens)


def _service_account(client_id: str, environ: Mapping[str, str]) -> Session:
    issuer, secret, path = (environ.get(name, "") for name in (ISSUER, SECRET, SECRET_FILE))
    if not issuer:
        raise UsageError(f"{CLIENT_ID} names a service account; {ISSUER} has to say whose: https://.../realms/NAME.")
    if path:
        try:
            secret = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{SECRET_FILE}: {path} cannot be read.") from error
    if not secret:
        raise UsageError(f"The service account {client_id} needs its secret: set {SECRET_FILE}.")
    certificates = environ.get(CA_CERTFILE)
    return ServiceAccount(issuer, client_id, secret, Path(certificates) if certificates else None)
