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
    for image in IMAGES:
        cluster.load_image(f"{built_images.name(image)}:{built_images.version()}")
    return cluster


@pytest.fixture(scope="session")
def keycloak(loaded: Cluster) -> dict[str, str]:
    """Keycloak's image in the cluster: the values that name it."""
    image = os.environ.get("KEYCLOAK_IMAGE") or built_images.keycloak_stand_in()
    loaded.load_image(image)
    repository, _, tag = image.rpartition(":")
    return {"keycloak.image.registry": "", "keycloak.image.repository": repository, "keycloak.image.tag": tag}


@pytest.fixture(scope="session")
def minimal(loaded: Cluster) -> Iterator[Release]:
    """ci/minimal-values.yaml: a SuperLink and two sites, installed once; whoever uses it leaves it as it was."""
    with loaded.namespace() as namespace:
        release = Release(loaded, namespace, "minimal", DIGITS)
        began = time.monotonic()
        release.install()
        print(f"From helm install to ready: {time.monotonic() - began:.1f} s")
        yield release


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def control(minimal: Release) -> AsyncIterator[Control]:
    """A user of it, on this machine."""
    user = Control(f"{minimal.service('superlink')}:9093")
    yield user
    await user.close()
