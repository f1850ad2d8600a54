"""templates/network/serverapp.yaml"""

from __future__ import annotations

from charts import rendered


def test_nobody_comes_in() -> None:
    assert rendered("minimal").one("NetworkPolicy", "serverapp")["spec"]["ingress"] == []


def test_what_apps_reach_is_the_operators_to_say() -> None:
    rule = {"to": [{"podSelector": {"matchLabels": {"app": "mlflow"}}}], "ports": [{"port": 5000}]}
    egress = rendered("minimal", {"serverapp": {"egress": [rule]}}).one("NetworkPolicy", "serverapp")["spec"]["egress"]
    assert rule in egress
    assert len(egress) == 3  # names, the SuperLink, and this
