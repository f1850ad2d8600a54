"""templates/network/keycloak.yaml"""

from __future__ import annotations

from charts import rendered
from policies import OUTSIDE, Network


def test_its_management_port_is_closed() -> None:
    network = Network(rendered("oidc"))
    assert "management" in network.pods["keycloak"].ports
    assert not [arrow for arrow in network.arrows() if arrow[1:] == ("keycloak", "management")]


def test_only_through_the_ingress_where_the_operator_says_so() -> None:
    ingress = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
    chart = rendered("oidc", {"networkPolicy": {"keycloak": {"from": [ingress]}}})
    arrows = Network(chart).arrows()
    assert (OUTSIDE, "keycloak", "https") not in arrows
    assert {who for who, whom, _ in arrows if whom == "keycloak"} == {"superlink", "test"}
    [rule] = chart.one("NetworkPolicy", "keycloak")["spec"]["ingress"]
    assert ingress in rule["from"]


def test_reaches_what_the_operator_lists() -> None:
    mail = {"to": [{"ipBlock": {"cidr": "192.0.2.25/32"}}], "ports": [{"port": 587}]}
    policy = rendered("oidc", {"keycloak": {"egress": [mail]}}).one("NetworkPolicy", "keycloak")["spec"]
    assert mail in policy["egress"]
