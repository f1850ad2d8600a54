"""templates/superlink/statefulset.yaml"""

from __future__ import annotations

import pytest
from charts import container, env, mounts, refused, rendered, volume


def test_one_replica_with_a_volume_of_its_own() -> None:
    superlink = rendered("minimal").one("StatefulSet", "superlink")
    assert superlink["spec"]["replicas"] == 1
    assert superlink["spec"]["serviceName"] == "trellis-superlink"
    [claim] = superlink["spec"]["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    assert superlink["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    assert mounts(container(superlink))["/app/state"] == "state"
    assert env(container(superlink))["TRELLIS_DATABASE"].startswith("/app/state/")


def test_without_persistence_the_state_goes_with_the_pod() -> None:
    superlink = rendered("minimal", {"superlink": {"persistence": {"enabled": False}}}).one("StatefulSet", "superlink")
    assert "volumeClaimTemplates" not in superlink["spec"]
    assert volume(superlink, "state") == {"name": "state", "emptyDir": {}}


def test_more_replicas_are_refused() -> None:
    assert "Set superlink.replicas to 1" in refused({"superlink": {"replicas": 2}})
    postgres = {"replicas": 2, "database": {"url": "postgresql://db/trellis"}}
    assert "not offered by this version yet" in refused({"superlink": postgres})


def test_plain_is_said_and_asks_executors_for_a_token() -> None:
    plain = env(container(rendered("minimal").one("StatefulSet", "superlink")))
    assert plain["TRELLIS_INSECURE"] == "true"
    assert plain["TRELLIS_JOIN_TOKEN_FILE"] == "/join/token"
    assert not [name for name in plain if "CERT" in name]


def test_tls_by_default() -> None:
    superlink = rendered().one("StatefulSet", "superlink")
    said = env(container(superlink))
    assert "TRELLIS_INSECURE" not in said
    assert said["TRELLIS_EXECUTOR_CA_CERTFILE"] == "/certs/executor-ca.crt"
    [source] = volume(superlink, "certs")["projected"]["sources"]
    assert source == {"secret": {"name": "trellis-superlink-tls"}}


def test_cert_manager_gives_the_executors_ca_and_no_other_key() -> None:
    superlink = rendered(None, {"tls": {"source": "certManager"}}).one("StatefulSet", "superlink")
    sources = {
        one["secret"]["name"]: one["secret"]["items"] for one in volume(superlink, "certs")["projected"]["sources"]
    }
    assert sources["trellis-serverapp-tls"] == [{"key": "ca.crt", "path": "executor-ca.crt"}]


def test_accounts() -> None:
    said = env(container(rendered("oidc").one("StatefulSet", "superlink")))
    assert said["TRELLIS_OIDC_ISSUER"] == "https://trellis-keycloak:8443/realms/trellis"
    assert said["TRELLIS_OIDC_INTERNAL_URL"] == "https://trellis-keycloak:8443/realms/trellis"
    assert said["TRELLIS_OIDC_CA_CERTFILE"] == "/oidc/ca.crt"
    assert said["TRELLIS_AUDIT_LOG"] == "-"


def test_accounts_at_a_provider_elsewhere() -> None:
    oidc = {
        "externalIssuer": "https://login.example.org/realms/fl",
        "clientSecret": {"name": "oidc", "key": "secret"},
        "caSecret": {"name": "ca"},
    }
    superlink = rendered(None, {"oidc": oidc}).one("StatefulSet", "superlink")
    said = env(container(superlink))
    assert said["TRELLIS_OIDC_ISSUER"] == "https://login.example.org/realms/fl"
    assert "TRELLIS_OIDC_INTERNAL_URL" not in said
    assert said["TRELLIS_OIDC_CLIENT_SECRET_FILE"] == "/oidc-client/secret"
    assert volume(superlink, "oidc-client")["secret"]["secretName"] == "oidc"
    assert volume(superlink, "oidc")["secret"]["secretName"] == "ca"


@pytest.mark.parametrize(("seconds", "grace"), [(40, "30"), (11, "1")])
def test_the_program_ends_before_kubernetes_ends_it(seconds: int, grace: str) -> None:
    values = {"superlink": {"terminationGracePeriodSeconds": seconds}}
    superlink = rendered("minimal", values).one("StatefulSet", "superlink")
    assert superlink["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == seconds
    assert env(container(superlink))["TRELLIS_GRACE"] == grace


def test_settings_are_the_programs_flags() -> None:
    settings = {
        "retention": "30d",
        "runs-per-account": 3,
        "bytes-per-account": 100_000_000_000,
        "oidc-audience": ["a", "b"],
    }
    said = env(container(rendered("minimal", {"superlink": {"settings": settings}}).one("StatefulSet", "superlink")))
    assert said["TRELLIS_RETENTION"] == "30d"
    assert said["TRELLIS_RUNS_PER_ACCOUNT"] == "3"
    assert said["TRELLIS_BYTES_PER_ACCOUNT"] == "100000000000"
    assert said["TRELLIS_OIDC_AUDIENCE"] == "a,b"


def test_settings_that_are_none_or_are_the_charts_are_refused() -> None:
    assert "retenton is not allowed" in refused({"superlink": {"settings": {"retenton": "30d"}}})
    assert "database is not allowed" in refused({"superlink": {"settings": {"database": ":memory:"}}})
