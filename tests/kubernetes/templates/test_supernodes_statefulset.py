"""templates/supernodes/statefulset.yaml"""

from __future__ import annotations

from charts import container, env, mounts, refused, rendered, volume


def test_each_site_has_its_own() -> None:
    chart = rendered("minimal")
    assert {"trellis-supernode-one", "trellis-supernode-two"} < chart.names("StatefulSet")
    one = chart.one("StatefulSet", "supernode-one")
    said = env(container(one))
    assert said["TRELLIS_SUPERLINK"] == "trellis-superlink:9092"
    assert said["TRELLIS_NODE_CONFIG"] == "num-partitions=2 partition-id=0"
    assert said["TRELLIS_STATE_DIR"] == "/app/state"
    assert [claim["metadata"]["name"] for claim in one["spec"]["volumeClaimTemplates"]] == ["state"]


def test_node_config_keeps_types() -> None:
    site = {"name": "x", "nodeConfig": {"n": 3, "rate": 0.5, "on": True, "ward": 'heart "and" lungs', "digits": "7"}}
    said = env(container(rendered(None, {"supernodes": [site]}).one("StatefulSet", "supernode-x")))
    assert said["TRELLIS_NODE_CONFIG"] == 'digits="7" n=3 on=true rate=0.5 ward="heart \\"and\\" lungs"'


def test_clientappio_over_mutual_tls() -> None:
    berlin = rendered("tls").one("StatefulSet", "supernode-berlin")
    said = env(container(berlin))
    assert said["TRELLIS_EXECUTOR_CA_CERTFILE"] == "/certs/executor-ca.crt"
    assert said["TRELLIS_SSL_CERTFILE"] == "/certs/tls.crt"
    assert "TRELLIS_APPIO_INSECURE" not in said
    assert [one["name"] for one in berlin["spec"]["template"]["spec"]["containers"]] == ["supernode"]


def test_the_same_pod_where_it_is_asked_for() -> None:
    paris = rendered("tls").one("StatefulSet", "supernode-paris")
    supernode, clientapp = env(container(paris, "supernode")), env(container(paris, "clientapp"))
    assert (
        supernode["TRELLIS_CLIENTAPPIO_API_ADDRESS"] == clientapp["TRELLIS_CLIENTAPPIO_API_ADDRESS"] == "127.0.0.1:9094"
    )
    assert supernode["TRELLIS_APPIO_INSECURE"] == clientapp["TRELLIS_INSECURE"] == "true"
    assert supernode["TRELLIS_OPS_ADDRESS"] != clientapp["TRELLIS_OPS_ADDRESS"]
    assert supernode["TRELLIS_JOIN_TOKEN_FILE"] == clientapp["TRELLIS_JOIN_TOKEN_FILE"] == "/join/token"
    # The apps' container has none of the SuperNode's other files.
    shared = set(mounts(container(paris, "supernode")).values()) & set(mounts(container(paris, "clientapp")).values())
    assert shared == {"join"}
    [source] = volume(paris, "certs")["projected"]["sources"]
    assert source["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


def test_a_superlink_elsewhere() -> None:
    berlin = rendered("site-only").one("StatefulSet", "supernode-berlin")
    assert env(container(berlin))["TRELLIS_SUPERLINK"] == "fl.example.org:31092"
    assert "externalSuperlink.address" in refused({"externalSuperlink": {"address": ""}}, "site-only")
    assert "externalSuperlink.caSecret.name" in refused({"externalSuperlink": {"caSecret": {"name": ""}}}, "site-only")


def test_a_key_of_its_operator() -> None:
    site = {"name": "x", "keySecret": {"name": "node-key", "key": "id_ecdsa"}}
    supernode = rendered(None, {"supernodes": [site]}).one("StatefulSet", "supernode-x")
    assert env(container(supernode))["TRELLIS_AUTH_SUPERNODE_PRIVATE_KEY"] == "/key/key"
    assert volume(supernode, "key")["secret"]["items"] == [{"key": "id_ecdsa", "path": "key"}]


def test_what_a_site_says_goes_over_what_all_have() -> None:
    values = {
        "supernode": {"settings": {"log-level": "DEBUG"}, "resources": {"limits": {"memory": "2Gi"}}},
        "supernodes": [
            {"name": "a"},
            {"name": "b", "supernode": {"settings": {"max-retries": 3}, "resources": {"limits": {"memory": "3Gi"}}}},
        ],
    }
    chart = rendered(None, values)
    a, b = (container(chart.one("StatefulSet", f"supernode-{name}")) for name in "ab")
    assert (a["resources"]["limits"]["memory"], b["resources"]["limits"]["memory"]) == ("2Gi", "3Gi")
    assert env(b)["TRELLIS_LOG_LEVEL"] == env(a)["TRELLIS_LOG_LEVEL"] == "DEBUG"
    assert env(b)["TRELLIS_MAX_RETRIES"] == "3"
    assert "TRELLIS_MAX_RETRIES" not in env(a)


def test_a_changed_policy_restarts_its_supernode() -> None:
    sums = set()
    for policy in ("", 'apps = ["a/b"]', 'apps = ["a/c"]'):
        supernode = rendered(None, {"supernodes": [{"name": "x", "policy": policy}]}).one("StatefulSet", "supernode-x")
        sums.add(supernode["spec"]["template"]["metadata"]["annotations"]["checksum/policy"])
    assert len(sums) == 3
