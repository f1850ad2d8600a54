"""templates/network/clientapps.yaml"""

from __future__ import annotations

from charts import rendered
from policies import Network


def test_its_own_supernode_and_no_other() -> None:
    arrows = Network(rendered("minimal")).arrows()
    for site in ("one", "two"):
        assert {whom for who, whom, _ in arrows if who == f"clientapp-{site}"} == {f"supernode-{site}"}


def test_the_sites_database_where_the_operator_lists_it() -> None:
    policy = rendered("site-only").one("NetworkPolicy", "clientapp-berlin")["spec"]
    database = {
        "to": [{"podSelector": {"matchLabels": {"app": "hospital-db"}}}],
        "ports": [{"port": 5432, "protocol": "TCP"}],
    }
    assert database in policy["egress"]
    assert policy["ingress"] == []


def test_of_one_site_only() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]}
    sites = [{"name": "a", "clientapp": {"egress": [rule]}}, {"name": "b"}]
    chart = rendered(None, {"supernodes": sites})
    assert rule in chart.one("NetworkPolicy", "clientapp-a")["spec"]["egress"]
    assert rule not in chart.one("NetworkPolicy", "clientapp-b")["spec"]["egress"]
