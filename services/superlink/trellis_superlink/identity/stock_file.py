"""Stock's settings file for account login (`--account-auth-config`, up to 1.22 `--user-auth-config`): YAML with
`authentication: {authn_type: oidc, authn_url, token_url, validate_url, oidc_client_id, oidc_client_secret}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import AliasChoices, BaseModel, Field, ValidationError

_KEYCLOAK = "/protocol/openid-connect/"


class StockFileProblem(ValueError):
    """The file cannot be used; `str(error)` says why."""


class _Authentication(BaseModel):
    """Up to 1.22 the first two were called auth_type and auth_url."""

    authn_type: Literal["oidc"] = Field(validation_alias=AliasChoices("authn_type", "auth_type"))
    authn_url: str = Field("", validation_alias=AliasChoices("authn_url", "auth_url"))
    token_url: str = ""
    validate_url: str = ""
    issuer: str = ""
    oidc_client_id: str
    oidc_client_secret: str | None = None


class StockFile:
    """What such a file says. `issuer` is what the provider's addresses have in common, "" where that is not clear."""

    def __init__(self, issuer: str, client_id: str, client_secret: str | None) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self.client_secret = client_secret

    @classmethod
    def read(cls, path: Path) -> StockFile:
        """StockFileProblem."""
        try:
            told: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StockFileProblem(f"{path} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise StockFileProblem(f"{path} is no YAML") from error  # what is wrong may quote a secret
        section = told.get("authentication") if isinstance(told, dict) else None
        if not isinstance(section, dict):
            raise StockFileProblem(f"{path} has no section `authentication`")
        try:
            found = _Authentication.model_validate(section)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise StockFileProblem(f"{path}: authentication.{first['loc'][0]}: {first['msg']}") from error
        addresses = [one for one in (found.authn_url, found.token_url, found.validate_url) if _KEYCLOAK in one]
        issuers = {one.partition(_KEYCLOAK)[0] for one in addresses}
        if found.issuer:
            issuers = {found.issuer}
        if len(issuers) > 1:
            raise StockFileProblem(f"{path} names several providers: {', '.join(sorted(issuers))}")
        return cls("".join(issuers), found.oidc_client_id, found.oidc_client_secret)
