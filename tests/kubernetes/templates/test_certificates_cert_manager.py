"""templates/certificates/cert-manager.yaml"""

from __future__ import annotations

from charts import refused, rendered, volume

SITES = [{"name": "berlin"}]


def test_three_authorities_and_who_signs_whom() -> None:
    chart = rendered(None, {"tls": {"source": "certManager"}, "supernodes": SITES})
    issuers = {
        one["metadata"]["name"].removeprefix("trellis-"): one["spec"]["issuerRef"]["name"].removeprefix("trellis-")
        for one in chart.kind("Certificate")
    }
    assert issuers == {
        "ca-network-ca": "self-signed",
        "ca-serverapp-ca": "self-signed",
        "ca-site-ca": "self-signed",
        "superlink": "network-ca",
        "serverapp": "serverapp-ca",
        "supernode-berlin": "site-ca",
        "clientapp-berlin": "site-ca",
    }
    for one in chart.kind("Certificate"):
        assert (one["spec"]["privateKey"]["algorithm"], one["spec"]["privateKey"]["size"]) == ("ECDSA", 256)


def test_servers_are_servers_and_clients_clients() -> None:
    chart = rendered(
        None, {"tls": {"source": "certManager", "names": ["fl.example.org", "192.0.2.1"]}, "supernodes": SITES}
    )
    superlink, clientapp = chart.one("Certificate", "superlink"), chart.one("Certificate", "clientapp-berlin")
    assert superlink["spec"]["usages"] == ["digital signature", "server auth"]
    assert clientapp["spec"]["usages"] == ["digital signature", "client auth"]
    assert "fl.example.org" in superlink["spec"]["dnsNames"]
    assert superlink["spec"]["ipAddresses"] == ["192.0.2.1"]


def test_no_pod_mounts_the_key_of_an_authority() -> None:
    chart = rendered("tls", {"tls": {"source": "certManager"}})
    authorities = {one["spec"]["secretName"] for one in chart.kind("Certificate") if one["spec"].get("isCA")}
    assert len(authorities) == 3
    for name, pod in chart.pods():
        assert not [one for one in authorities if one in str(pod)], name


def test_an_issuer_of_the_operators() -> None:
    issuer = {"kind": "ClusterIssuer", "name": "corporate"}
    chart = rendered(None, {"tls": {"source": "certManager", "certManager": {"issuerRef": issuer}}})
    assert chart.one("Certificate", "superlink")["spec"]["issuerRef"] == issuer
    assert "trellis-ca-network-ca" not in chart.names("Certificate")


def test_existing_secrets_by_role() -> None:
    tls = {"source": "existingSecrets", "existingSecrets": {"superlink": "ours"}}
    chart = rendered(None, {"tls": tls, "supernodes": SITES})
    [source] = volume(chart.one("StatefulSet", "superlink"), "certs")["projected"]["sources"]
    assert source["secret"]["name"] == "ours"
    [source] = volume(chart.one("Deployment", "clientapp-berlin"), "certs")["projected"]["sources"]
    assert source["secret"]["name"] == "trellis-clientapp-berlin-tls"
    assert "there is no role superlnk here" in refused({"tls": {**tls, "existingSecrets": {"superlnk": "x"}}})
    assert "tls.existingSecrets goes with" in refused({"tls": {"existingSecrets": {"superlink": "x"}}})
