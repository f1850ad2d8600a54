"""templates/keycloak/statefulset.yaml"""

from __future__ import annotations

from charts import container, env, mounts, refused, rendered, volume


def test_passwords_come_as_files() -> None:
    keycloak = rendered("oidc").one("StatefulSet", "keycloak")
    assert not [name for name in env(container(keycloak)) if "PASSWORD" in name or "SECRET" in name]
    assert volume(keycloak, "secrets")["secret"]["secretName"] == "trellis-keycloak"
    assert mounts(container(keycloak))["/secrets"] == "secrets"
    [script] = container(keycloak)["args"]
    assert script.strip().endswith("exec /opt/keycloak/bin/kc.sh start --import-realm")


def test_tls_and_where_browsers_reach_it() -> None:
    keycloak = rendered("oidc", {"keycloak": {"url": "https://login.example.org/"}}).one("StatefulSet", "keycloak")
    said = env(container(keycloak))
    assert said["KC_HOSTNAME"] == "https://login.example.org"
    assert said["KC_HOSTNAME_BACKCHANNEL_DYNAMIC"] == "true"
    assert said["KC_HTTPS_CERTIFICATE_FILE"] == "/certs/tls.crt"
    assert container(keycloak)["image"] == "quay.io/keycloak/keycloak:26.7.3"


def test_probes_ask_the_management_port() -> None:
    keycloak = container(rendered("oidc").one("StatefulSet", "keycloak"))
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert keycloak[probe]["httpGet"]["port"] == "management"


def test_a_database() -> None:
    database = {"vendor": "postgres", "url": "jdbc:postgresql://db/keycloak", "existingSecret": "db"}
    keycloak = container(rendered("oidc", {"keycloak": {"database": database}}).one("StatefulSet", "keycloak"))
    assert env(keycloak)["KC_DB_URL"] == "jdbc:postgresql://db/keycloak"
    [password] = [one for one in keycloak["env"] if one["name"] == "KC_DB_PASSWORD"]
    assert password["valueFrom"] == {"secretKeyRef": {"name": "db", "key": "password"}}
    assert "give url (JDBC)" in refused({"keycloak": {"database": {"vendor": "postgres"}}}, "oidc")


def test_accounts_need_tls_and_one_provider() -> None:
    assert "accounts need TLS" in refused({"tls": {"source": "none"}}, "oidc")
    assert "from one provider" in refused({"oidc": {"externalIssuer": "https://login.example.org"}}, "oidc")
    assert "Keycloak belongs to the SuperLink" in refused({"keycloak": {"enabled": True}}, "site-only")
