"""templates/serverapp/hpa.yaml"""

from __future__ import annotations

from charts import rendered


def test_off_by_default() -> None:
    assert not rendered("minimal").of("serverapp/hpa")


def test_scales_its_deployment() -> None:
    scaling = {"enabled": True, "minReplicas": 2, "maxReplicas": 5, "targetCPUUtilizationPercentage": 70}
    chart = rendered("minimal", {"serverapp": {"autoscaling": scaling}})
    spec = chart.one("HorizontalPodAutoscaler", "serverapp")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "trellis-serverapp"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    [metric] = spec["metrics"]
    assert metric["resource"]["target"]["averageUtilization"] == 70
    assert spec["scaleTargetRef"]["name"] in chart.names("Deployment")
