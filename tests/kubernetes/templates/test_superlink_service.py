"""templates/superlink/service.yaml"""

from __future__ import annotations

from charts import rendered, selects


def test_all_four_ports_inside_the_cluster() -> None:
    chart = rendered("minimal")
    service = chart.one("Service", "superlink")["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == {
        "serverappio": 9091,
        "fleet": 9092,
        "control": 9093,
        "http": 8000,
    }
    assert "type" not in service
    assert selects(service["selector"], chart.one("StatefulSet", "superlink")["spec"]["template"]["metadata"]["labels"])


def test_none_at_a_site() -> None:
    assert not rendered("site-only").of("superlink/service")
