"""The cluster, the images and the installation that the tests of this folder share."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator

import built_images
import pytest
import pytest_asyncio
from cluster import Cluster
from releases import DIGITS, Release
from trellis_testing.control import Control

IMAGES = ("superlink", "supernode", "serverapp-digits", "clientapp-digits", "cli")
BASES = ("serverapp", "clientapp")  # of those with -digits


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Kubernetes, with nothing in it; tests make namespaces of their own."""
    with Cluster.running() as running:
        yield running


@pytest.fixture(scope="session")
def loaded(cluster: Cluster) -> Cluster:
    """The same with the images that the chart names in it, as they are built from the tree."""
    built_images.build(*BASES, *IMAGES)
    cluster.load_images(*(f"{built_images.name(image)}:{built_images.version()}" for image in IMAGES))
    return cluster


@pytest.fixture(scope="session")
def keycloak(loaded: Cluster) -> dict[str, str]:
    """Keycloak's image in the cluster: the values that name it."""
    image = os.environ.get("KEYCLOAK_IMAGE") or built_images.keycloak_stand_in()
    loaded.load_images(image)
    repository, _, tag = image.rpartition(":")
    return {"keycloak.image.registry": "", "keycloak.image.repository": repository, "keycloak.image.tag": tag}


READY = pytest.StashKey[float]()
"""Seconds from `helm install` until everything is ready."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if READY in config.stash:
        terminalreporter.write_line(f"helm install of ci/minimal-values.yaml: ready after {config.stash[READY]:.1f} s")


@pytest.fixture(scope="session")
def minimal(loaded: Cluster, pytestconfig: pytest.Config) -> Iterator[Release]:
    """ci/minimal-values.yaml: a SuperLink and two sites, installed once; whoever uses it leaves it as it was."""
    with loaded.namespace() as namespace:
        release = Release(loaded, namespace, "minimal", DIGITS)
        began = time.monotonic()
        release.install()
        pytestconfig.stash[READY] = time.monotonic() - began
        yield release


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def control(minimal: Release) -> AsyncIterator[Control]:
    """A user of it, on this machine."""
    user = Control(f"{minimal.service('superlink')}:9093")
    yield user
    await user.close()
