"""templates/validation.yaml"""

from __future__ import annotations

import pytest
from charts import Document, refused, rendered


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
    ],
)
def test_contradictions_say_what_to_do(values: Document, said: str) -> None:
    assert said in refused(values)


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
    ],
)
def test_the_schema_refuses(values: Document, said: str) -> None:
    assert said in refused(values)


def test_nothing_of_it_is_rendered() -> None:
    assert not rendered("tls").of("validation")
