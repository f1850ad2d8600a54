"""templates/keycloak/realm.yaml"""

from __future__ import annotations

import json

from charts import ROOT, rendered, volume


def test_the_realm_is_composes() -> None:
    chart = rendered("oidc")
    realm = json.loads(chart.one("ConfigMap", "realm")["data"]["realm.json"])
    assert realm == json.loads((ROOT / "compose" / "keycloak" / "realm.json").read_text())
    assert volume(chart.one("StatefulSet", "keycloak"), "realm")["configMap"]["name"] == "trellis-realm"


def test_a_realm_of_the_operators() -> None:
    chart = rendered("oidc", {"keycloak": {"realm": {"configMap": "ours"}}})
    assert not chart.of("keycloak/realm")
    assert volume(chart.one("StatefulSet", "keycloak"), "realm")["configMap"]["name"] == "ours"
