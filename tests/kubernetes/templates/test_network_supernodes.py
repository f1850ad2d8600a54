"""templates/network/supernodes.yaml"""

from __future__ import annotations

from charts import rendered
from policies import Network

DATABASE = {"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 5432}]}


def test_a_superlink_elsewhere_by_the_port_of_its_published_address() -> None:
    policy = rendered("site-only").one("NetworkPolicy", "supernode-berlin")["spec"]
    assert {"ports": [{"port": 31092, "protocol": "TCP"}]} in policy["egress"]


def test_nobody_else_reaches_a_sites_supernode() -> None:
    arrows = Network(rendered("minimal")).arrows()
    assert {who for who, whom, _ in arrows if whom == "supernode-one"} == {"clientapp-one"}


def test_a_site_has_two_policies_and_in_the_same_pod_one() -> None:
    sites = [{"name": "apart"}, {"name": "together", "samePod": True}]
    chart = rendered(None, {"supernodes": sites, "clientapp": {"egress": [DATABASE]}})
    assert DATABASE not in chart.one("NetworkPolicy", "supernode-apart")["spec"]["egress"]
    assert DATABASE in chart.one("NetworkPolicy", "supernode-together")["spec"]["egress"]
    assert chart.one("NetworkPolicy", "supernode-together")["spec"]["ingress"] == []
    assert "trellis-clientapp-together" not in chart.names("NetworkPolicy")
