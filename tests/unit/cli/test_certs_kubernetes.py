"""`trellis certs kubernetes`: what it writes into Secrets, what it keeps, and what it says when it may not."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from kubernetes_api import NAMESPACE, TOKEN, Cluster, serve
from trellis_cli import secrets
from trellis_cli.certificates import NETWORK, Deployment
from trellis_cli.main import main
from trellis_kit import certificates

SERVER = ("superlink=fl-superlink-tls", "serverapp=fl-serverapp-tls", "--name", "superlink=fl-superlink.fl.svc")
SITE = ("supernode-one=fl-supernode-one-tls", "clientapp-one=fl-clientapp-one-tls")
LABEL = ("--label", "app.kubernetes.io/instance=fl")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """An API server, and what Kubernetes gives a pod to reach it."""
    pki = Deployment(tmp_path / "api")
    pki.make_authority(NETWORK, 2)
    pki.issue("keycloak", ["127.0.0.1"], 1)
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text(TOKEN)
    (account / "namespace").write_text(NAMESPACE)
    (account / "ca.crt").write_bytes((tmp_path / "api" / "ca.crt").read_bytes())
    monkeypatch.setattr(secrets, "_ACCOUNT", account)
    cluster = Cluster()
    for port in serve(cluster, tmp_path / "api" / "keycloak" / "tls.crt", tmp_path / "api" / "keycloak" / "tls.key"):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        yield cluster


def provide(*more: str) -> int:
    return main(["certs", "kubernetes", "--authorities", "fl-authorities", *LABEL, *more])


def content(cluster: Cluster, name: str) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in cluster.secrets[name]["data"].items()}


def signed_by(leaf: bytes, ca: bytes) -> None:
    x509.load_pem_x509_certificate(leaf).verify_directly_issued_by(x509.load_pem_x509_certificate(ca))


def test_everything_is_made_once(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert provide(*SERVER, *SITE) == 0
    assert sorted(cluster.secrets) == [
        *("fl-authorities", "fl-clientapp-one-tls", "fl-serverapp-tls", "fl-superlink-tls", "fl-supernode-one-tls"),
    ]
    authorities = content(cluster, "fl-authorities")
    superlink, serverapp = content(cluster, "fl-superlink-tls"), content(cluster, "fl-serverapp-tls")
    supernode, clientapp = content(cluster, "fl-supernode-one-tls"), content(cluster, "fl-clientapp-one-tls")
    signed_by(superlink["tls.crt"], authorities["ca.crt"])
    signed_by(serverapp["tls.crt"], superlink["executor-ca.crt"])
    signed_by(supernode["tls.crt"], clientapp["ca.crt"])
    signed_by(clientapp["tls.crt"], supernode["executor-ca.crt"])
    assert superlink["ca.crt"] == serverapp["ca.crt"] == supernode["ca.crt"] == authorities["ca.crt"]
    assert cluster.secrets["fl-superlink-tls"]["type"] == "kubernetes.io/tls"
    labels = cluster.secrets["fl-superlink-tls"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/instance": "fl", "app.kubernetes.io/managed-by": "trellis-certs"}
    key = load_pem_private_key(superlink["tls.key"], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    facts = certificates.facts(x509.load_pem_x509_certificate(superlink["tls.crt"]))
    assert facts.names == ("fl-superlink.fl.svc",)
    # No key of a CA is anywhere else.
    keys = [authorities[name] for name in authorities if name.endswith(".key")]
    assert len(keys) == 3
    assert not any(
        key in content(cluster, name).values() for name in cluster.secrets if name != "fl-authorities" for key in keys
    )

    written = len(cluster.writes)
    capsys.readouterr()
    assert provide(*SERVER, *SITE) == 0
    assert len(cluster.writes) == written
    assert "All certificates are good" in capsys.readouterr().out


def test_renews_what_ends_soon_under_the_same_authorities(cluster: Cluster) -> None:
    assert provide(*SERVER, "--days", "20", "--within", "10") == 0
    before = {name: content(cluster, name) for name in cluster.secrets}
    assert provide(*SERVER, "--days", "90") == 0
    after = {name: content(cluster, name) for name in cluster.secrets}
    assert after["fl-authorities"] == before["fl-authorities"]
    assert after["fl-superlink-tls"]["tls.key"] != before["fl-superlink-tls"]["tls.key"]
    signed_by(after["fl-superlink-tls"]["tls.crt"], before["fl-authorities"]["ca.crt"])
    left = x509.load_pem_x509_certificate(after["fl-serverapp-tls"]["tls.crt"])
    assert left.not_valid_after_utc - left.not_valid_before_utc > timedelta(days=89)


def test_a_new_name_and_a_new_site(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert provide(*SERVER) == 0
    before = {name: content(cluster, name) for name in cluster.secrets}
    capsys.readouterr()
    assert provide(*SERVER, *SITE, "--name", "superlink=fl.example.org", "--format", "json") == 0
    issued = {one["name"]: one["why"] for one in json.loads(capsys.readouterr().out)["issued"]}
    assert issued == {
        "site-ca": "there is none",
        "superlink": "its names have changed",
        "supernode-one": "there is none",
        "clientapp-one": "there is none",
    }
    assert content(cluster, "fl-serverapp-tls") == before["fl-serverapp-tls"]
    assert before["fl-authorities"].items() <= content(cluster, "fl-authorities").items()


def test_a_site_of_a_superlink_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    there = Deployment(tmp_path / "there")
    there.make_authority(NETWORK, 10)
    network = tmp_path / "there" / "ca.crt"
    assert provide(*SITE, "--network-ca", str(network)) == 0
    assert sorted(content(cluster, "fl-authorities")) == ["site-ca.crt", "site-ca.key"]
    assert content(cluster, "fl-supernode-one-tls")["ca.crt"] == network.read_bytes()

    other = Deployment(tmp_path / "other")
    other.make_authority(NETWORK, 10)
    before = content(cluster, "fl-clientapp-one-tls")
    assert provide(*SITE, "--network-ca", str(tmp_path / "other" / "ca.crt")) == 0
    assert content(cluster, "fl-supernode-one-tls")["ca.crt"] == (tmp_path / "other" / "ca.crt").read_bytes()
    assert content(cluster, "fl-clientapp-one-tls") == before


def test_keycloak_is_known_by_the_networks_ca(cluster: Cluster) -> None:
    assert provide(*SERVER, "keycloak=fl-keycloak-tls", "--name", "keycloak=fl-keycloak") == 0
    signed_by(content(cluster, "fl-keycloak-tls")["tls.crt"], content(cluster, "fl-superlink-tls")["ca.crt"])


def test_what_others_made_is_left_alone(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = {"metadata": {"name": "fl-superlink-tls"}, "type": "Opaque", "data": {"tls.crt": "bm9uZQ=="}}
    cluster.keep(foreign)
    assert provide(*SERVER) == 1
    assert "was not made by `trellis certs` and is left alone" in capsys.readouterr().err
    assert cluster.secrets["fl-superlink-tls"] == foreign


def test_somebody_else_was_faster(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    ours = {"app.kubernetes.io/managed-by": "trellis-certs"}
    faster = {"metadata": {"name": "fl-authorities", "labels": ours}, "type": "Opaque", "data": {}}
    cluster.before_write.append(faster)
    assert provide(*SERVER) == 3
    assert "run this again" in capsys.readouterr().err
    assert "fl-superlink-tls" not in cluster.secrets  # nothing was signed by a CA that is not kept
    assert provide(*SERVER) == 0


def test_a_damaged_certificate_is_issued_anew(cluster: Cluster) -> None:
    assert provide(*SERVER) == 0
    cluster.secrets["fl-superlink-tls"]["data"]["tls.crt"] = base64.b64encode(b"no certificate").decode()
    assert provide(*SERVER) == 0
    signed_by(content(cluster, "fl-superlink-tls")["tls.crt"], content(cluster, "fl-authorities")["ca.crt"])


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_account_that_may_not(cluster: Cluster, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.forbidden.add(method)
    assert provide(*SERVER) == 1
    said = capsys.readouterr().err
    assert "fl-authorities in fl" in said
    assert f"service account may not ({method} is not allowed)" in said


def test_outside_of_a_pod(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert provide(*SERVER) == 2
    assert "This runs in a pod" in capsys.readouterr().err


def test_nobody_answers(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    assert provide(*SERVER) == 3
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("superlink",), "expected ROLE=SECRET"),
        (("nobody=x",), "is no role"),
        (("superlink=x", "--name", "serverapp=y"), "serverapp is not among the roles"),
    ],
)
def test_wrong_words(cluster: Cluster, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert provide(*words) == 2
    assert said in capsys.readouterr().err
