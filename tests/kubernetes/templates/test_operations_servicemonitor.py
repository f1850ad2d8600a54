"""templates/operations/servicemonitor.yaml"""

from __future__ import annotations

from charts import rendered, selects


def test_measures_every_program() -> None:
    chart = rendered("minimal", {"metrics": {"serviceMonitor": {"enabled": True, "labels": {"team": "fl"}}}})
    [monitor] = chart.kind("ServiceMonitor")
    service = chart.one("Service", "metrics")
    assert selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    assert monitor["metadata"]["labels"]["team"] == "fl"
    for name, pod in chart.pods():
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] not in ("test", "certificates"):
            assert selects(service["spec"]["selector"], pod["metadata"]["labels"]), name
            ports = [port["name"] for one in pod["spec"]["containers"] for port in one["ports"]]
            assert "ops" in ports, name


def test_off_by_default() -> None:
    assert not rendered("minimal").of("operations/servicemonitor")
