"""What the SuperLink's settings and stock's file say of the provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trellis_kit.lifecycle import Fatal
from trellis_superlink.login import CLIENT, Identity, provider_config
from trellis_superlink.settings import SuperLinkSettings

REALM = "https://login.example.org/realms/trellis"
STOCK = f"""
authentication:
  authn_type: oidc
  authn_url: {REALM}/protocol/openid-connect/auth/device
  token_url: {REALM}/protocol/openid-connect/token
  validate_url: {REALM}/protocol/openid-connect/userinfo
  oidc_client_id: flower
  oidc_client_secret: s3cret
"""


def test_without_a_provider_there_is_no_login() -> None:
    assert provider_config(SuperLinkSettings()) is None


def test_a_provider_by_flags() -> None:
    found = provider_config(
        SuperLinkSettings(oidc_issuer=REALM, oidc_internal_url="http://127.0.0.1:8080/realms/trellis")
    )
    assert found is not None
    assert (found.issuer, found.client_id, found.client_secret) == (REALM, CLIENT, None)
    assert found.audiences == frozenset()


def test_a_provider_by_stocks_file_and_flags_before_it(tmp_path: Path) -> None:
    (tmp_path / "auth.yaml").write_text(STOCK)
    found = provider_config(SuperLinkSettings(account_auth_config=tmp_path / "auth.yaml"))
    assert found is not None
    assert (found.issuer, found.client_id, found.client_secret) == (REALM, "flower", "s3cret")
    mine = SuperLinkSettings(account_auth_config=tmp_path / "auth.yaml", oidc_client_id="mine", oidc_issuer=REALM + "2")
    found = provider_config(mine)
    assert found is not None
    assert (found.issuer, found.client_id) == (REALM + "2", "mine")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"oidc_issuer": "http://login.example.org/realms/trellis"}, "in the clear"),
        ({"oidc_issuer": "http://localhost.example.org/realms/trellis"}, "in the clear"),
        ({"oidc_issuer": "ftp://login.example.org"}, "is no address"),
        ({"oidc_issuer": "login.example.org"}, "is no address"),
        ({"oidc_issuer": REALM, "oidc_internal_url": "keycloak:8080"}, "--oidc-internal-url"),
        ({"oidc_issuer": REALM, "insecure": True}, "Login needs TLS"),
        ({"account_auth_config": Path("/nowhere.yaml")}, "--account-auth-config"),
    ],
)
def test_a_provider_that_cannot_be_meant(given: dict[str, Any], told: str) -> None:
    with pytest.raises(Fatal, match=told):
        provider_config(SuperLinkSettings(**given))


def test_roles_for_nobody() -> None:
    with pytest.raises(Fatal, match="--roles-file"):
        Identity.of(SuperLinkSettings(roles_file=Path("roles.toml")))
