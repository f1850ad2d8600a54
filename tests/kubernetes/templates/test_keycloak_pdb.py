"""templates/keycloak/pdb.yaml"""

from __future__ import annotations

from charts import rendered, selects


def test_a_drain_takes_one_at_a_time() -> None:
    chart = rendered("oidc")
    budget = chart.one("PodDisruptionBudget", "keycloak")["spec"]
    assert budget["maxUnavailable"] == 1
    labels = {name: pod["metadata"]["labels"] for name, pod in chart.pods()}
    chosen = [name for name, found in labels.items() if selects(budget["selector"]["matchLabels"], found)]
    assert chosen == ["trellis-keycloak"]


def test_drains_wait_where_the_operator_says_so() -> None:
    chart = rendered("oidc", {"keycloak": {"pdb": {"maxUnavailable": 0}}})
    assert chart.one("PodDisruptionBudget", "keycloak")["spec"]["maxUnavailable"] == 0
    assert not rendered("oidc", {"keycloak": {"pdb": {"enabled": False}}}).of("keycloak/pdb")
