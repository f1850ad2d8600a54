"""templates/keycloak/service.yaml"""

from __future__ import annotations

from charts import rendered


def test_https_only() -> None:
    service = rendered("oidc").one("Service", "keycloak")["spec"]
    assert [(port["name"], port["port"]) for port in service["ports"]] == [("https", 8443)]
