"""Values that YAML, Go's templates or Kubernetes would take for something else arrive as they were written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from charts import Document, Rendered, container, env, refused, rendered, volume

NAMES = ("true", "null", "on", "1e6", "0123", "12")
"""Good names of sites that YAML reads as something else."""
TEXTS = (
    'it\'s "quoted"',
    "a: b # c",
    "{{ x }}",
    "a=b c=d",
    "   indented\nless\n",
    "\ttab\r\n",
    "ü \u2028 ☃",
    "",
)
DOLLARS = ("$$", "$(HOME)", "pa$$word$", "$$(HOME)")


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of the value of a variable."""

    def one(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def not_text(node: Any, place: str = "") -> Iterator[str]:
    """Where the API server wants text, and there is something else."""
    if isinstance(node, dict):
        for key, value in node.items():
            wanted = key in ("name", "secretName", "value", "key", "storageClassName", "priorityClassName")
            if place.rpartition(".")[2] in ("labels", "matchLabels", "annotations", "data") or wanted:
                if not (isinstance(key, str) and isinstance(value, str)):
                    yield f"{place}.{key}: {value!r}"
            else:
                yield from not_text(value, f"{place}.{key}")
    elif isinstance(node, list):
        for one in node:
            yield from not_text(one, place)


def all_not_text(chart: Rendered) -> list[str]:
    return [found for one in chart for found in not_text(one)]


@pytest.mark.parametrize("source", ["none", "job", "certManager"])
def test_sites_of_any_name(source: str) -> None:
    sites: list[Document] = [{"name": name} for name in NAMES]
    sites[0]["samePod"] = True
    chart = rendered(None, {"tls": {"source": source}, "supernodes": sites})
    assert not all_not_text(chart)
    assert {one["metadata"]["labels"]["trellis/site"] for one in chart.kind("StatefulSet")[1:]} == set(NAMES)


def test_secrets_and_classes_of_any_name() -> None:
    secret = {"name": "123", "key": "456"}
    site = {"keySecret": secret, "clientapp": {"appSecrets": [{"name": "1", "secret": "2", "key": "3"}]}}
    chart = rendered(
        None,
        {
            "image": {"pullSecrets": ["123"], "tag": "2024"},
            "superlink": {"priorityClassName": "12", "persistence": {"storageClass": "yes"}},
            "oidc": {"externalIssuer": "https://login.example.org", "clientSecret": secret, "caSecret": secret},
            "tests": {"login": {"clientId": "42", "secret": secret}},
            "tls": {"source": "existingSecrets", "existingSecrets": {"superlink": "1", "serverapp": "true"}},
            "supernodes": [{"name": "a", **site}],
        },
    )
    assert not all_not_text(chart)
    assert volume(chart.one("StatefulSet", "supernode-a"), "key")["secret"]["secretName"] == "123"


def test_it_looks() -> None:
    assert all_not_text(Rendered([{"metadata": {"labels": {"a": 1}}}, {"data": {True: "x"}}, {"secretName": 5}]))


@pytest.mark.parametrize("text", TEXTS + DOLLARS)
def test_text_arrives_as_it_is(text: str) -> None:
    values = {"superlink": {"settings": {"public-url": text}}, "serverapp": {"appEnv": {"TEXT": text}}}
    chart = rendered(None, {**values, "supernodes": [{"name": "a", "nodeConfig": {"text": text}}]})
    home = {"HOME": "/somewhere"}
    assert expanded(env(container(chart.one("Deployment", "serverapp")))["TEXT"], home) == text
    assert expanded(env(container(chart.one("StatefulSet", "superlink")))["TRELLIS_PUBLIC_URL"], home) == text
    config = expanded(env(container(chart.one("StatefulSet", "supernode-a")))["TRELLIS_NODE_CONFIG"], home)
    assert json.loads(config.removeprefix("text=")) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_files_arrive_as_they_are(text: str) -> None:
    chart = rendered(None, {"superlink": {"roles": text}, "supernodes": [{"name": "a", "policy": text}]})
    assert chart.one("ConfigMap", "superlink")["data"] == {"roles.toml": text}
    assert chart.one("ConfigMap", "supernode-a")["data"] == {"policy.toml": text}
    ca = {"enabled": False}, {"address": "fl.example.org:9092", "caCertificate": text}
    site = {"superlink": ca[0], "serverapp": ca[0], "externalSuperlink": ca[1], "supernodes": [{"name": "a"}]}
    found = [one["data"] for one in rendered(None, site).kind("ConfigMap")]
    assert found == [{"ca.crt": text}] * 3  # the site's, and those of what makes certificates


def test_users_of_openshift() -> None:
    """Numbers of a million and more, which Go writes as 1.00065e+09."""
    user = 1000650000
    chart = rendered(
        "minimal",
        {
            "security": {"runAsUser": user, "runAsGroup": user, "fsGroup": user},
            "serverapp": {"terminationGracePeriodSeconds": 2000000},
        },
    )
    security = chart.one("Deployment", "serverapp")["spec"]["template"]["spec"]["securityContext"]
    assert [type(security[key]) for key in ("runAsUser", "runAsGroup", "fsGroup")] == [int] * 3
    assert security["runAsUser"] == user
    assert isinstance(
        chart.one("Deployment", "serverapp")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], int
    )


def test_a_path_is_no_place_for_more_yaml() -> None:
    data = {"mountPath": "/data, readOnly: false, x: y", "volume": {"emptyDir": {}}}
    chart = rendered(None, {"clientapp": {"data": data}, "supernodes": [{"name": "a"}]})
    [mount] = [
        one for one in container(chart.one("Deployment", "clientapp-a"))["volumeMounts"] if one["name"] == "data"
    ]
    assert mount == {"name": "data", "mountPath": data["mountPath"], "readOnly": True}


def test_tags_are_text() -> None:
    """1.10 in a file of values is 1.1, and 20240101 is 2.0240101e+07."""
    for tag in (1.10, 20240101):
        assert "image.tag: Invalid type" in refused({"image": {"tag": tag}})


def test_annotations_of_an_ingress_go_in_place_of_ours() -> None:
    size = "nginx.ingress.kubernetes.io/proxy-body-size"
    ingress = {"enabled": True, "annotations": {size: "5m"}, "control": {"host": "c.example.org"}}
    [found] = rendered("tls", {"access": {"ingress": ingress}}).kind("Ingress")
    assert found["metadata"]["annotations"][size] == "5m"
    assert len(found["metadata"]["annotations"]) == 5


def test_no_ports_are_not_all_ports() -> None:
    assert "networkPolicy.apiServer.ports" in refused({"networkPolicy": {"apiServer": {"ports": []}}})
