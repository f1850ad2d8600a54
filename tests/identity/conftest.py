"""One Keycloak for all tests, and one federation that trusts it. What a test changes at either it changes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from identity_world import World
from keycloak_server import Keycloak

_SECONDS = 900
"""For a test, Keycloak's start included, which takes a while where other things run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "identity" and item.path.parents[1].name == "tests":
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture(scope="session")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    server = Keycloak(tmp_path_factory.mktemp("keycloak"))
    try:
        server.start()
        admin = server.admin()
        realm = admin.get_realm("trellis")
        admin.update_realm("trellis", {**realm, "oauth2DevicePollingInterval": 1})  # users are quick here
        server.add_user("colleague", "trellis-user")
        server.add_user("stranger")
        yield server
    finally:
        print(server.role.log_tail(60))
        asyncio.run(server.role.stop(30))


@pytest.fixture(scope="session")
def world(keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world"), keycloak) as found:
        yield found
