"""templates/access/ingress.yaml"""

from __future__ import annotations

from charts import Document, container, env, refused, rendered

HOSTS = {
    name: {"host": f"{name}.example.org", "tlsSecret": f"{name}-tls"}
    for name in ("control", "fleet", "http", "keycloak")
}
LET_IN: Document = {"networkPolicy": {"keycloak": {"from": [{"podSelector": {"matchLabels": {"app": "ingress"}}}]}}}
PROTOCOL = "nginx.ingress.kubernetes.io/backend-protocol"
PASSTHROUGH = "nginx.ingress.kubernetes.io/ssl-passthrough"


def test_passthrough_leaves_tls_to_the_superlink() -> None:
    chart = rendered("oidc", {"access": {"ingress": {"enabled": True, **HOSTS}}, **LET_IN})
    for name, port in (("control", 9093), ("fleet", 9092), ("http", 8000)):
        ingress = chart.one("Ingress", name)
        assert ingress["metadata"]["annotations"][PASSTHROUGH] == "true"
        assert ingress["spec"]["tls"] == [{"hosts": [f"{name}.example.org"]}]
        [rule] = ingress["spec"]["rules"]
        [path] = rule["http"]["paths"]
        assert path["backend"]["service"] == {"name": "trellis-superlink", "port": {"number": port}}


def test_termination_speaks_tls_again_behind() -> None:
    chart = rendered("oidc", {"access": {"ingress": {"enabled": True, "tls": "terminate", **HOSTS}}, **LET_IN})
    expected = {"control": "GRPCS", "fleet": "GRPCS", "http": "HTTPS", "keycloak": "HTTPS"}
    for name, protocol in expected.items():
        ingress = chart.one("Ingress", name)
        assert ingress["metadata"]["annotations"][PROTOCOL] == protocol
        assert PASSTHROUGH not in ingress["metadata"]["annotations"]
        assert ingress["spec"]["tls"] == [{"hosts": [f"{name}.example.org"], "secretName": f"{name}-tls"}]


def test_plain_behind_where_nothing_is_encrypted() -> None:
    hosts = {"control": {"host": "c.example.org"}, "http": {"host": "h.example.org"}}
    chart = rendered("minimal", {"access": {"ingress": {"enabled": True, "tls": "terminate", **hosts}}})
    assert chart.one("Ingress", "control")["metadata"]["annotations"][PROTOCOL] == "GRPC"
    assert chart.one("Ingress", "http")["metadata"]["annotations"][PROTOCOL] == "HTTP"
    assert chart.names("Ingress") == {"trellis-control", "trellis-http"}


def test_of_keycloak_only_what_is_public_is_routed() -> None:
    for tls in ("passthrough", "terminate"):
        chart = rendered("oidc", {"access": {"ingress": {"enabled": True, "tls": tls, **HOSTS}}, **LET_IN})
        ingress = chart.one("Ingress", "keycloak")
        assert PASSTHROUGH not in ingress["metadata"]["annotations"]
        [rule] = ingress["spec"]["rules"]
        assert [path["path"] for path in rule["http"]["paths"]] == ["/realms/trellis/", "/resources/"]


def test_keycloaks_host_is_where_tokens_are_from() -> None:
    chart = rendered("oidc", {"access": {"ingress": {"enabled": True, **HOSTS}}, **LET_IN})
    issuer = env(container(chart.one("StatefulSet", "superlink")))["TRELLIS_OIDC_ISSUER"]
    assert issuer == "https://keycloak.example.org/realms/trellis"


def test_links_to_what_runs_leave_behind_name_the_host() -> None:
    values = {"access": {"ingress": {"enabled": True, **HOSTS}}, **LET_IN}
    said = env(container(rendered("oidc", values).one("StatefulSet", "superlink")))
    assert said["TRELLIS_PUBLIC_URL"] == "https://http.example.org"
    settings = {"settings": {"public-url": "https://fl.example.org:8443"}}
    said = env(container(rendered("oidc", {**values, "superlink": settings}).one("StatefulSet", "superlink")))
    assert said["TRELLIS_PUBLIC_URL"] == "https://fl.example.org:8443"
    assert "TRELLIS_PUBLIC_URL" not in env(container(rendered("oidc").one("StatefulSet", "superlink")))


def test_contradictions() -> None:
    def said(scenario: str, **ingress: object) -> str:
        return refused({"access": {"ingress": {"enabled": True, **ingress}}}, scenario)

    assert "give at least one host" in said("tls")
    host = {"host": "x.example.org"}
    assert "no TLS to pass through" in said("minimal", control=host)
    assert "access.ingress.control.tlsSecret" in said("tls", control=host, tls="terminate")
    assert "access.ingress.keycloak.tlsSecret" in said("oidc", keycloak=host)
