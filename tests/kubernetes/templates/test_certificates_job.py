"""templates/certificates/job.yaml"""

from __future__ import annotations

from charts import container, mounts, rendered, volume


def test_comes_before_everything_else_with_what_it_needs() -> None:
    made = rendered("tls").of("certificates/job")
    assert {one["kind"] for one in made} == {"ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "Job"}
    weights = {one["kind"]: int(one["metadata"]["annotations"]["helm.sh/hook-weight"]) for one in made}
    assert all(weights["Job"] > weight for kind, weight in weights.items() if kind != "Job")
    for one in made:
        assert one["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert "hook-succeeded" in one["metadata"]["annotations"]["helm.sh/hook-delete-policy"]


def test_may_write_its_secrets_and_no_others() -> None:
    [role] = rendered("tls").of("certificates/job").kind("Role")
    create, named = role["rules"]
    assert create == {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}
    assert named["verbs"] == ["get", "update"]
    assert set(named["resourceNames"]) == {
        "trellis-authorities",
        "trellis-superlink-tls",
        "trellis-serverapp-tls",
        "trellis-supernode-berlin-tls",
        "trellis-clientapp-berlin-tls",
    }


def test_asks_for_every_role_that_is_mounted_anywhere() -> None:
    for scenario in ("tls", "oidc", "server-only"):
        chart = rendered(scenario)
        words = container(chart.one("Job", "certificates-hook"))["args"]
        made = {word.partition("=")[2] for word in words if not word.startswith("-") and "=" in word}
        for name, pod in chart.pods():
            for one in pod["spec"].get("volumes", []):
                for source in one.get("projected", {}).get("sources", []):
                    assert source["secret"]["name"] in made, name


def test_names_of_the_superlink() -> None:
    words = container(rendered("tls").one("Job", "certificates-hook"))["args"]
    names = {word.rpartition("=")[2] for word in words if word.startswith("--name=superlink=")}
    service = {"trellis-superlink", "trellis-superlink.fl", "trellis-superlink.fl.svc"}
    assert names == {*service, "trellis-superlink.fl.svc.cluster.local", "localhost", "fl.example.org", "192.0.2.10"}
    ingress = {"enabled": True, "control": {"host": "control.example.org"}}
    words = container(rendered("tls", {"access": {"ingress": ingress}}).one("Job", "certificates-hook"))["args"]
    assert "--name=superlink=control.example.org" in words
    words = container(
        rendered("oidc", {"keycloak": {"url": "https://login.example.org:8443"}}).one("Job", "certificates-hook")
    )["args"]
    assert "--name=keycloak=login.example.org" in words


def test_keys_never_touch_a_disk() -> None:
    job = rendered("tls").one("Job", "certificates-hook")
    assert volume(job, "tmp")["emptyDir"]["medium"] == "Memory"
    assert mounts(container(job)) == {"/tmp": "tmp"}


def test_a_site_is_told_whom_to_trust() -> None:
    job = rendered("site-only").one("Job", "certificates-hook")
    assert "--network-ca=/network/ca.crt" in container(job)["args"]
    assert volume(job, "network")["secret"]["secretName"] == "network-ca"
    pem = {"externalSuperlink": {"caCertificate": "PEM", "caSecret": {"name": ""}}}
    chart = rendered("site-only", pem)
    # Of its own: the release's ConfigMap is not there before the release is.
    assert volume(chart.one("Job", "certificates-hook"), "network")["configMap"]["name"] == "trellis-certificates-hook"
    assert (
        chart.one("ConfigMap", "certificates-hook")["metadata"]["annotations"]["helm.sh/hook"]
        == "pre-install,pre-upgrade"
    )


def test_none_where_certificates_come_from_elsewhere() -> None:
    for source in ("none", "existingSecrets", "certManager"):
        assert not rendered(None, {"tls": {"source": source}}).of("certificates/job")
