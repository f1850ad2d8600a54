"""templates/superlink/configmap.yaml"""

from __future__ import annotations

from charts import container, env, mounts, rendered

KEY = "ecdsa-sha2-nistp256 AAAA node"


def test_keys_and_roles() -> None:
    chart = rendered("minimal", {"superlink": {"supernodeKeys": [KEY, KEY], "roles": "[roles]\nreader = []\n"}})
    data = chart.one("ConfigMap", "superlink")["data"]
    assert data["supernode-keys"].split("\n")[:2] == [KEY, KEY]
    assert data["roles.toml"] == "[roles]\nreader = []\n"
    superlink = container(chart.one("StatefulSet", "superlink"))
    assert env(superlink)["TRELLIS_AUTH_LIST_PUBLIC_KEYS"] == "/settings/supernode-keys"
    assert env(superlink)["TRELLIS_ROLES_FILE"] == "/settings/roles.toml"
    assert mounts(superlink)["/settings"] == "settings"


def test_a_change_restarts_the_superlink_which_reads_them_at_its_start() -> None:
    sums = set()
    for keys in ([], [KEY], [KEY, KEY]):
        superlink = rendered("minimal", {"superlink": {"supernodeKeys": keys}}).one("StatefulSet", "superlink")
        sums.add(superlink["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])
    assert len(sums) == 3


def test_none_where_there_is_nothing_to_say() -> None:
    assert not rendered("minimal").of("superlink/configmap")
