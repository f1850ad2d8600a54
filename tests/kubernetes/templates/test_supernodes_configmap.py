"""templates/supernodes/configmap.yaml"""

from __future__ import annotations

from charts import container, env, rendered


def test_policy_and_signers() -> None:
    site = {"name": "x", "policy": 'apps = ["a/b"]\n', "trustedEntities": {"fpk_1": "ssh-ed25519 AAAA review"}}
    chart = rendered(None, {"supernodes": [site, {"name": "y"}]})
    data = chart.one("ConfigMap", "supernode-x")["data"]
    assert data["policy.toml"] == 'apps = ["a/b"]\n'
    assert data["trusted-entities.yaml"].strip() == "fpk_1: ssh-ed25519 AAAA review"
    said = env(container(chart.one("StatefulSet", "supernode-x")))
    assert said["TRELLIS_POLICY"] == "/policy/policy.toml"
    assert said["TRELLIS_TRUSTED_ENTITIES"] == "/policy/trusted-entities.yaml"
    assert len(chart.of("supernodes/configmap")) == 1
