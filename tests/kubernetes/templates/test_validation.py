"""templates/validation.yaml"""

from __future__ import annotations

import pytest
import yaml
from charts import CHART, Document, refused, rendered

HOST = {"host": "fl.example.org"}
REMOVED = yaml.safe_load((CHART / "files" / "removed.yaml").read_text())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"superlink": {"enabled": False}, "serverapp": {"enabled": False}}, "There is nothing to install"),
        ({"externalSuperlink": {"address": "fl.example.org:9092"}}, "externalSuperlink.address: sites join"),
        ({"supernodes": [{"name": "a"}, {"name": "a"}]}, "two sites have the same name"),
        ({"supernodes": [{"name": "a" * 30}], "fullnameOverride": "b" * 30}, "take a shorter name"),
        ({"superlink": {"database": {"url": "postgresql://x"}}}, "leave superlink.database.url empty"),
        ({"keycloak": {"enabled": True, "url": "http://login.example.org"}}, "give the https:// address"),
        ({"tests": {"login": {"clientId": "ci"}}}, "tests.login.secret.name"),
        ({"supernodes": [{"name": "serverapp"}]}, "no site can be named serverapp"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "commonLabels: app.kubernetes.io/name is the chart's own"),
        ({"serverapp": {"podLabels": {"app.kubernetes.io/component": "superlink"}}}, "serverapp.podLabels: app.kub"),
        ({"supernodes": [{"name": "a", "clientapp": {"podLabels": {"trellis/site": "b"}}}]}, "a: clientapp.podLabels"),
        ({"access": {"ingress": {"enabled": True, "control": HOST, "fleet": HOST}}}, "give each its own"),
    ],
)
def test_contradictions_say_what_to_do(values: Document, said: str) -> None:
    assert said in refused(values)


@pytest.mark.parametrize("place", REMOVED)
def test_values_that_are_no_more_say_what_to_do(place: str) -> None:
    values: Document = {}
    node = values
    *parents, name = place.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = False
    assert f"{place}: there is no such value; {REMOVED[place]}" in refused(values)


@pytest.mark.parametrize("release", ["123", "a.b", "1e6"])
def test_releases_that_no_service_can_be_named_after(release: str) -> None:
    assert "set fullnameOverride to one" in refused({}, release=release)
    assert rendered(None, {"fullnameOverride": "fl"}, release).names("StatefulSet") == {"fl-superlink"}


def test_the_longest_name() -> None:
    """Kubernetes takes 52 characters for a CronJob."""
    assert max(map(len, rendered(None, {}, "a" * 39).names("CronJob"))) == 52
    assert "longer than 39 characters" in refused({}, release="a" * 40)


def test_all_of_them_at_once() -> None:
    said = refused({"superlink": {"replicas": 3}, "supernodes": [{"name": "a"}, {"name": "a"}]})
    assert "Set superlink.replicas to 1" in said
    assert "two sites have the same name" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"superlnk": {}}, "superlnk is not allowed"),
        ({"supernodes": [{"nme": "x"}]}, "name is required"),
        ({"supernodes": [{"name": "X"}]}, "Does not match pattern"),
        ({"supernodes": [{"name": "x", "clientapp": {"replica": 2}}]}, "replica is not allowed"),
        ({"tls": {"source": "acme"}}, "tls.source"),
        ({"superlink": {"replicas": "two"}}, "Invalid type"),
        ({"externalSuperlink": {"address": "https://fl.example.org"}}, "Does not match pattern"),
        ({"clientapp": {"settings": {"guest-sandbox": "never"}}}, "guest-sandbox"),
        ({"image": {"tags": "x"}}, "tags is not allowed"),
        ({"networkPolicy": {"dns": {"from": []}}}, "from is not allowed"),
        ({"superlink": None}, "superlink is required"),
        ({"supernodes": None}, "supernodes is required"),
        ({"tls": {"job": None}}, "job is required"),
        ({"clientapp": {"settings": None}}, "settings is required"),
    ],
)
def test_the_schema_refuses(values: Document, said: str) -> None:
    assert said in refused(values)


def test_nothing_of_it_is_rendered() -> None:
    assert not rendered("tls").of("validation")
