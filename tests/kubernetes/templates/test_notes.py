"""templates/NOTES.txt"""

from __future__ import annotations

from charts import notes


def test_says_how_to_log_in_and_submit() -> None:
    said = notes("oidc")
    assert "trellis login --superlink localhost:9093 --root-certificates ca.crt" in said
    assert "kubectl -n fl get secret trellis-keycloak -o 'jsonpath={.data.researcher-password}'" in said
    assert "trellis run APP --stream --superlink localhost:9093 --root-certificates ca.crt" in said
    assert "helm test trellis -n fl" in said
    assert "say in keycloak.url where they reach it" in said
    assert "keycloak.url" not in notes("oidc", {"keycloak": {"url": "https://login.example.org"}})


def test_says_that_nothing_is_encrypted() -> None:
    said = notes("minimal")
    assert "NOTHING IS ENCRYPTED" in said
    assert "--insecure" in said


def test_says_where_the_way_in_is() -> None:
    assert "--superlink NODE:30093" in notes("tls")
    ingress = {"enabled": True, "control": {"host": "control.example.org"}}
    assert "--superlink control.example.org:443" in notes("tls", {"access": {"ingress": ingress}})


def test_says_what_a_site_is_and_what_the_same_pod_costs() -> None:
    assert "of the SuperLink at fl.example.org:31092" in notes("site-only")
    assert "Site paris runs its apps in the SuperNode's pod" in notes("tls")
