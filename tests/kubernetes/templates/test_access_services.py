"""templates/access/services.yaml"""

from __future__ import annotations

from charts import rendered


def ports(document: dict) -> dict[str, int]:  # type: ignore[type-arg]
    return {port["name"]: port.get("nodePort", 0) for port in document["spec"]["ports"]}


def test_ports_on_the_nodes() -> None:
    public = rendered("tls").one("Service", "superlink-public")
    assert public["spec"]["type"] == "NodePort"
    assert ports(public) == {"control": 30093, "fleet": 30092, "http": 30080}


def test_serverappio_is_never_among_them() -> None:
    for scenario in ("tls", "server-only"):
        for service in rendered(scenario).kind("Service"):
            if service["spec"].get("type", "ClusterIP") != "ClusterIP":
                assert 9091 not in [port["port"] for port in service["spec"]["ports"]]


def test_some_only() -> None:
    assert ports(rendered("server-only").one("Service", "superlink-public")) == {"control": 31093, "fleet": 31092}


def test_keycloaks() -> None:
    service = {"type": "LoadBalancer", "annotations": {"cloud/internal": "true"}, "keycloak": {"enabled": True}}
    chart = rendered("oidc", {"access": {"service": service}})
    keycloak = chart.one("Service", "keycloak-public")
    assert keycloak["spec"]["type"] == "LoadBalancer"
    assert keycloak["metadata"]["annotations"] == {"cloud/internal": "true"}
    assert ports(keycloak) == {"https": 0}


def test_keycloaks_only_where_it_is_asked_for() -> None:
    """All its paths would be there, the administration's, too."""
    chart = rendered("oidc", {"access": {"service": {"type": "NodePort"}}})
    assert "trellis-superlink-public" in chart.names("Service")
    assert "trellis-keycloak-public" not in chart.names("Service")


def test_none_by_default() -> None:
    assert not rendered("minimal").of("access/services")
