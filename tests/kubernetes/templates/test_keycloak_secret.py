"""templates/keycloak/secret.yaml"""

from __future__ import annotations

import base64

from charts import rendered, volume

NAMES = {"keycloak-root-password", "admin-password", "researcher-password", "viewer-password", "pipeline-secret"}


def test_passwords_are_made_and_kept() -> None:
    secret = rendered("oidc").one("Secret", "keycloak")
    assert set(secret["data"]) == NAMES
    assert len(set(secret["data"].values())) == len(NAMES)
    assert all(len(base64.b64decode(value)) >= 32 for value in secret["data"].values())
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_passwords_of_the_operators() -> None:
    chart = rendered("oidc", {"keycloak": {"existingSecret": "ours"}})
    assert not chart.of("keycloak/secret")
    assert volume(chart.one("StatefulSet", "keycloak"), "secrets")["secret"]["secretName"] == "ours"
