"""templates/network/tests.yaml"""

from __future__ import annotations

from charts import rendered
from policies import Network


def test_what_a_user_reaches_and_no_more() -> None:
    arrows = Network(rendered("oidc")).arrows()
    assert {(whom, port) for who, whom, port in arrows if who == "test"} == {
        ("superlink", "control"),
        ("keycloak", "https"),
    }
    assert not [arrow for arrow in arrows if arrow[1] == "test"]


def test_a_provider_elsewhere() -> None:
    values = {
        "oidc": {"externalIssuer": "https://login.example.org/realms/fl"},
        "tests": {"login": {"clientId": "ci", "secret": {"name": "ci"}, "issuer": "https://login.fl:8443/realms/fl"}},
    }
    policy = rendered(None, values).one("NetworkPolicy", "test")["spec"]
    assert {"ports": [{"port": 8443, "protocol": "TCP"}]} in policy["egress"]
