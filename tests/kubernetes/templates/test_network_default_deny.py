"""templates/network/default-deny.yaml: what is in no list below is closed."""

from __future__ import annotations

import pytest
from charts import SCENARIOS, rendered, selects
from policies import OUTSIDE, Network

SERVER = {
    (OUTSIDE, "superlink", "control"),
    (OUTSIDE, "superlink", "fleet"),
    (OUTSIDE, "superlink", "http"),
    ("serverapp", "superlink", "serverappio"),
    ("test", "superlink", "control"),
}
ARROWS = {
    "minimal": SERVER
    | {(f"supernode-{site}", "superlink", port) for site in ("one", "two") for port in ("fleet", "http")}
    | {(f"clientapp-{site}", f"supernode-{site}", "clientappio") for site in ("one", "two")},
    "tls": SERVER
    | {(f"supernode-{site}", "superlink", port) for site in ("berlin", "paris") for port in ("fleet", "http")}
    | {("clientapp-berlin", "supernode-berlin", "clientappio")},
    "oidc": SERVER
    | {("supernode-one", "superlink", "fleet"), ("supernode-one", "superlink", "http")}
    | {("clientapp-one", "supernode-one", "clientappio")}
    | {(who, "keycloak", "https") for who in ("superlink", "test")},
    "server-only": SERVER,
    "site-only": {("clientapp-berlin", "supernode-berlin", "clientappio")},
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_these_arrows_and_no_others(scenario: str) -> None:
    assert Network(rendered(scenario)).arrows() == ARROWS[scenario]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_without_policies_everything_is_open(scenario: str) -> None:
    network = Network(rendered(scenario, {"networkPolicy": {"enabled": False}, "tls": {"job": {"renewSchedule": ""}}}))
    assert not network.policies
    assert network.arrows() > ARROWS[scenario]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_pod_is_denied_first(scenario: str) -> None:
    chart = rendered(scenario)
    policy = chart.one("NetworkPolicy", "default-deny")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    assert "egress" not in policy
    for name, pod in chart.pods():
        assert selects(policy["podSelector"]["matchLabels"], pod["metadata"]["labels"]), name
