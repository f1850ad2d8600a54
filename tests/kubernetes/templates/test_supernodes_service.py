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


def test_a_site_can_change_between_one_pod_and_two() -> None:
    """What Kubernetes lets nobody change is the same: a Service's kind of address, a StatefulSet's selector."""
    apart, together = (rendered(None, {"supernodes": [{"name": "x", "samePod": same}]}) for same in (False, True))
    assert apart.one("Service", "supernode-x")["spec"] == together.one("Service", "supernode-x")["spec"]
    for field in ("selector", "serviceName", "volumeClaimTemplates"):
        before, after = (chart.one("StatefulSet", "supernode-x")["spec"][field] for chart in (apart, together))
        assert before == after
