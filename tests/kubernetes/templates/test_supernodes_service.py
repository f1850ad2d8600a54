"""templates/supernodes/service.yaml"""

from __future__ import annotations

from charts import rendered, selects


def test_reached_by_its_site_also_while_the_superlink_is_away() -> None:
    chart = rendered("minimal")
    service = chart.one("Service", "supernode-one")["spec"]
    assert service["publishNotReadyAddresses"] is True
    assert [port["port"] for port in service["ports"]] == [9094]
    chosen = [name for name, pod in chart.pods() if selects(service["selector"], pod["metadata"]["labels"])]
    assert chosen == ["trellis-supernode-one"]


def test_in_the_same_pod_nothing_is_to_be_reached() -> None:
    service = rendered("tls").one("Service", "supernode-paris")["spec"]
    assert service["clusterIP"] == "None"
    assert "ports" not in service
