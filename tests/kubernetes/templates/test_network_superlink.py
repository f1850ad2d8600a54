"""templates/network/superlink.yaml"""

from __future__ import annotations

import pytest
from charts import Document, refused, rendered
from policies import OUTSIDE, Network

OFFICE = {"ipBlock": {"cidr": "192.0.2.0/24"}}


def egress(values: Document, scenario: str | None = None) -> list[Document]:
    found: list[Document] = rendered(scenario, values).one("NetworkPolicy", "superlink")["spec"]["egress"]
    return found


def test_users_from_where_the_operator_says() -> None:
    values = {"networkPolicy": {"control": {"from": [OFFICE]}}}
    arrows = Network(rendered("minimal", values)).arrows()
    assert (OUTSIDE, "superlink", "control") not in arrows
    assert ("test", "superlink", "control") in arrows
    [rule] = [
        one
        for one in rendered("minimal", values).one("NetworkPolicy", "superlink")["spec"]["ingress"]
        if one["ports"] == [{"port": "control"}]
    ]
    assert OFFICE in rule["from"]


def test_sites_from_where_the_operator_says() -> None:
    arrows = Network(rendered("minimal", {"networkPolicy": {"fleet": {"from": [OFFICE]}}})).arrows()
    assert (OUTSIDE, "superlink", "fleet") not in arrows
    assert ("supernode-one", "superlink", "fleet") in arrows


@pytest.mark.parametrize("given", [("fleet",), ("control",), ("fleet", "control")])
def test_over_http_only_who_is_in_a_list_as_soon_as_there_is_one(given: tuple[str, ...]) -> None:
    """It has both APIs: closed for users on one port, it would be open on the other."""
    chart = rendered("minimal", {"networkPolicy": {name: {"from": [OFFICE]} for name in given}})
    arrows = Network(chart).arrows()
    assert (OUTSIDE, "superlink", "http") not in arrows
    assert ("supernode-one", "superlink", "http") in arrows
    rules = chart.one("NetworkPolicy", "superlink")["spec"]["ingress"]
    [http] = [one["from"] for one in rules if one["ports"] == [{"port": "http"}]]
    assert http.count(OFFICE) == 1


def test_metrics_for_whom_the_operator_says() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    chart = rendered("minimal", {"networkPolicy": {"metrics": {"from": [monitoring]}}})
    for role in ("superlink", "serverapp", "supernode-one", "clientapp-one"):
        rules = chart.one("NetworkPolicy", role)["spec"]["ingress"]
        assert {"from": [monitoring], "ports": [{"port": "ops"}]} in rules


def test_a_provider_elsewhere_by_its_port() -> None:
    rules = egress({"oidc": {"externalIssuer": "https://login.example.org:8443/realms/fl"}})
    assert {"ports": [{"port": 8443, "protocol": "TCP"}]} in rules
    rules = egress({"oidc": {"externalIssuer": "https://login.example.org/realms/fl"}})
    assert {"ports": [{"port": 443, "protocol": "TCP"}]} in rules
    assert len(egress({})) == 1  # names only


def test_names_are_looked_up_in_the_cluster() -> None:
    [names] = egress({})
    assert names["ports"] == [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    assert names["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]


def test_names_are_looked_up_elsewhere() -> None:
    openshift = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}
    [names] = egress({"networkPolicy": {"dns": {"to": [openshift], "ports": [5353]}}})
    both = [{"port": 5353, "protocol": "UDP"}, {"port": 5353, "protocol": "TCP"}]
    assert names == {"to": [openshift], "ports": both}
    assert "networkPolicy.dns.ports" in refused({"networkPolicy": {"dns": {"ports": []}}})


def test_what_else_the_operator_lists() -> None:
    rule = {"to": [{"podSelector": {"matchLabels": {"app": "postgres"}}}], "ports": [{"port": 5432}]}
    assert rule in egress({"superlink": {"egress": [rule]}})
