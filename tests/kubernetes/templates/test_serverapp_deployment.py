"""templates/serverapp/deployment.yaml"""

from __future__ import annotations

from charts import container, env, mounts, refused, rendered, volume


def test_connects_to_the_superlink_and_shows_who_it_is() -> None:
    serverapp = rendered("tls").one("Deployment", "serverapp")
    assert serverapp["spec"]["replicas"] == 2
    said = env(container(serverapp))
    assert said["TRELLIS_SERVERAPPIO_API_ADDRESS"] == "trellis-superlink:9091"
    assert (said["TRELLIS_CERTFILE"], said["TRELLIS_KEYFILE"]) == ("/certs/tls.crt", "/certs/tls.key")
    assert said["TRELLIS_ROOT_CERTIFICATES"] == "/certs/ca.crt"


def test_plain_with_a_token() -> None:
    chart = rendered("minimal")
    serverapp = chart.one("Deployment", "serverapp")
    assert env(container(serverapp))["TRELLIS_JOIN_TOKEN_FILE"] == "/join/token"
    join = volume(serverapp, "join")["secret"]
    assert join == volume(chart.one("StatefulSet", "superlink"), "join")["secret"]
    assert join["items"] == [{"key": "serverapp", "path": "token"}]


def test_what_apps_may_see() -> None:
    values = {
        "appEnv": {"MLFLOW": "http://mlflow", "DEPTH": 3, "MANY": 20_000_000},
        "appSecrets": [{"name": "db-password", "secret": "db", "key": "password"}],
    }
    serverapp = rendered("minimal", {"serverapp": values}).one("Deployment", "serverapp")
    said = env(container(serverapp))
    assert (said["MLFLOW"], said["DEPTH"]) == ("http://mlflow", "3")
    assert said["MANY"] == "20000000"
    assert said["TRELLIS_APP_ENV"] == "DEPTH,MANY,MLFLOW"
    assert said["TRELLIS_APP_SECRET"] == "/app-secrets/db-password/db-password"
    assert mounts(container(serverapp))["/app-secrets/db-password"] == "app-secret-db-password"
    assert volume(serverapp, "app-secret-db-password")["secret"]["secretName"] == "db"


def test_autoscaling_decides_how_many() -> None:
    serverapp = rendered("minimal", {"serverapp": {"autoscaling": {"enabled": True}}}).one("Deployment", "serverapp")
    assert "replicas" not in serverapp["spec"]


def test_only_beside_its_superlink() -> None:
    assert "set serverapp.enabled to false" in refused({"serverapp": {"enabled": True}}, "site-only")
    assert not rendered("site-only").of("serverapp/deployment")
