"""templates/certificates/join-tokens.yaml"""

from __future__ import annotations

from charts import rendered, volume


def test_a_secret_for_each_side_where_there_is_no_tls() -> None:
    data = rendered("minimal").one("Secret", "join-tokens")["data"]
    assert set(data) == {"serverapp", "one", "two"}
    assert len(set(data.values())) == 3


def test_with_tls_only_within_a_pod() -> None:
    assert set(rendered("tls").one("Secret", "join-tokens")["data"]) == {"paris"}
    assert not rendered("oidc").of("certificates/join-tokens")


def test_yours() -> None:
    values = {"tls": {"joinTokens": {"existingSecret": "tokens"}}}
    chart = rendered("minimal", values)
    assert "trellis-join-tokens" not in chart.names("Secret")
    for kind, name in (("StatefulSet", "superlink"), ("Deployment", "serverapp"), ("Deployment", "clientapp-one")):
        assert volume(chart.one(kind, name), "join")["secret"]["secretName"] == "tokens"
