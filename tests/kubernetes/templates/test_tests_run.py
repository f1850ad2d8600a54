"""templates/tests/run.yaml"""

from __future__ import annotations

from charts import container, env, rendered, volume


def words(scenario: str, values: dict[str, object] | None = None) -> list[str]:
    found: list[str] = container(rendered(scenario, values).one("Pod", "test"))["args"]
    return found


def test_submits_to_the_superlink_and_waits() -> None:
    assert words("minimal") == [
        *("flwr", "run", "/app", "--stream", "--run-config=sites=2"),
        *("--superlink=trellis-superlink:9093", "--insecure"),
    ]
    assert "--root-certificates=/certs/ca.crt" in words("tls")
    pod = rendered("tls").one("Pod", "test")
    [source] = volume({"spec": {"template": {"spec": pod["spec"]}}}, "certs")["projected"]["sources"]
    assert source["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]  # and no key


def test_waits_for_the_sites_that_can_come() -> None:
    assert "--run-config=sites=0" in words("server-only")
    assert "--run-config=sites=0" in words("minimal", {"superlink": {"settings": {"unknown-supernodes": "hold"}}})
    assert "--run-config=sites=5" in words("server-only", {"tests": {"sites": 5}})


def test_logs_in_by_the_service_account() -> None:
    pod = rendered("oidc").one("Pod", "test")
    said = env(container(pod))
    assert said["TRELLIS_CLIENT_ID"] == "trellis-pipeline"
    assert said["TRELLIS_OIDC_ISSUER"] == "https://trellis-keycloak:8443/realms/trellis"


def test_a_provider_elsewhere_has_to_be_told_about() -> None:
    oidc = {"externalIssuer": "https://login.example.org/realms/fl"}
    assert not rendered(None, {"oidc": oidc}).of("tests/run")
    login = {"clientId": "ci", "secret": {"name": "ci"}}
    pod = rendered(None, {"oidc": oidc, "tests": {"login": login}}).one("Pod", "test")
    assert env(container(pod))["TRELLIS_OIDC_ISSUER"] == oidc["externalIssuer"]


def test_none_at_a_site() -> None:
    assert not rendered("site-only").of("tests/run")
