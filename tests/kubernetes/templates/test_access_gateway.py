"""templates/access/gateway.yaml"""

from __future__ import annotations

from charts import Rendered, refused, rendered

HOSTS = {name: {"hostnames": [f"{name}.example.org"]} for name in ("control", "fleet", "http", "keycloak")}
PARENT = [{"name": "public", "namespace": "gateways"}]


def gateway(scenario: str, **more: object) -> Rendered:
    values = {"enabled": True, "parentRefs": PARENT, "backendCaConfigMap": "ca", **HOSTS, **more}
    let_in = {"keycloak": {"from": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]}}
    return rendered(scenario, {"access": {"gateway": values}, "networkPolicy": let_in}).of("access/gateway")


def test_passthrough() -> None:
    routes = gateway("oidc")
    assert routes.names("TLSRoute") == {"trellis-control", "trellis-fleet", "trellis-http"}
    fleet = routes.one("TLSRoute", "fleet")["spec"]
    assert fleet["parentRefs"] == PARENT
    assert fleet["rules"] == [{"backendRefs": [{"name": "trellis-superlink", "port": 9092}]}]


def test_termination_by_protocol() -> None:
    routes = gateway("oidc", tls="terminate")
    assert routes.names("GRPCRoute") == {"trellis-control", "trellis-fleet"}
    assert routes.names("HTTPRoute") == {"trellis-http", "trellis-keycloak"}
    assert routes.names("BackendTLSPolicy") == {"trellis-superlink", "trellis-keycloak"}
    policy = routes.one("BackendTLSPolicy", "superlink")["spec"]
    assert policy["validation"]["hostname"] == "trellis-superlink"
    assert policy["validation"]["caCertificateRefs"][0]["name"] == "ca"


def test_of_keycloak_only_what_is_public_is_routed() -> None:
    [rule] = gateway("oidc").one("HTTPRoute", "keycloak")["spec"]["rules"]
    assert [one["path"]["value"] for one in rule["matches"]] == ["/realms/trellis/", "/resources/"]


def test_nothing_encrypted() -> None:
    routes = gateway("minimal", tls="terminate", backendCaConfigMap="")
    assert routes.names("GRPCRoute") == {"trellis-control", "trellis-fleet"}
    assert not routes.kind("BackendTLSPolicy")


def test_contradictions() -> None:
    def said(scenario: str, **more: object) -> str:
        return refused({"access": {"gateway": {"enabled": True, "parentRefs": PARENT, **more}}}, scenario)

    assert "access.gateway.parentRefs" in said("tls", parentRefs=[])
    assert "no TLS to pass through" in said("minimal")
    assert "access.gateway.backendCaConfigMap" in said("tls", tls="terminate")
