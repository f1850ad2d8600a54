"""templates/network/keycloak.yaml"""

from __future__ import annotations

from charts import Document, Rendered, refused, rendered
from policies import OUTSIDE, Network


def test_its_management_port_is_closed() -> None:
    network = Network(rendered("oidc"))
    assert "management" in network.pods["keycloak"].ports
    assert not [arrow for arrow in network.arrows() if arrow[1:] == ("keycloak", "management")]


def reached_by(chart: Rendered) -> set[str]:
    return {who for who, whom, port in Network(chart).arrows() if (whom, port) == ("keycloak", "https")}


def test_nobody_comes_in_who_was_not_named() -> None:
    """The administration is behind the same port."""
    assert reached_by(rendered("oidc")) == {"superlink", "test"}
    assert reached_by(rendered("oidc", {"access": {"service": {"type": "NodePort"}}})) == {"superlink", "test"}


def test_everybody_where_the_operator_publishes_all_of_it() -> None:
    service: Document = {"type": "NodePort", "keycloak": {"enabled": True}}
    published: Document = {"access": {"service": service}}
    assert OUTSIDE in reached_by(rendered("oidc", published))
    office = {"networkPolicy": {"keycloak": {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}}}
    assert reached_by(rendered("oidc", published | office)) == {"superlink", "test"}


def test_also_through_the_ingress_where_the_operator_says_so() -> None:
    ingress = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
    chart = rendered("oidc", {"networkPolicy": {"keycloak": {"from": [ingress]}}})
    assert reached_by(chart) == {"superlink", "test"}
    [rule] = chart.one("NetworkPolicy", "keycloak")["spec"]["ingress"]
    assert ingress in rule["from"]


def test_reaches_what_the_operator_lists() -> None:
    mail = {"to": [{"ipBlock": {"cidr": "192.0.2.25/32"}}], "ports": [{"port": 587}]}
    policy = rendered("oidc", {"keycloak": {"egress": [mail]}}).one("NetworkPolicy", "keycloak")["spec"]
    assert mail in policy["egress"]


def test_an_ingress_that_would_not_get_through_is_refused() -> None:
    host = {"host": "login.example.org", "tlsSecret": "login"}
    ingress = {"access": {"ingress": {"enabled": True, "keycloak": host}}}
    assert "networkPolicy.keycloak.from: Keycloak is closed" in refused(ingress, "oidc")
    gateway = {"enabled": True, "parentRefs": [{"name": "g"}], "backendCaConfigMap": "ca"}
    gateway["keycloak"] = {"hostnames": ["login.example.org"]}
    assert "networkPolicy.keycloak.from: Keycloak is closed" in refused({"access": {"gateway": gateway}}, "oidc")
    assert rendered("oidc", ingress | {"networkPolicy": {"enabled": False}}).one("Ingress", "keycloak")
