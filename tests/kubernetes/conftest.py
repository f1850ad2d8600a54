"""The cluster that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Kubernetes, with nothing in it; tests make namespaces of their own."""
    with Cluster.running() as running:
        yield running
