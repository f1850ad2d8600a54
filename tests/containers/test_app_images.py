"""Apps whose sites need what neither their SuperNode nor the server has: images of the ClientApp process with it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from container_world import APPS, trained
from trellis_testing import FederationContainer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clientapp_image(images: None) -> str:
    """What docs/testing.md and examples/digits show: FROM ours, and what the apps import."""
    image = "trellis-test/clientapp-jax-xgboost"
    dockerfile = ROOT / "examples" / "digits" / "Dockerfile"
    subprocess.run(["docker", "build", "--quiet", "--tag", image, "--file", dockerfile, APPS], check=True)
    return image


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(clientapp_image: str) -> AsyncIterator[FederationContainer]:
    """One site that has JAX and XGBoost."""
    async with FederationContainer(1, clientapp_image=clientapp_image) as federation:
        yield federation


@pytest.mark.parametrize(("app", "library"), [("quadrants", "jax"), ("boosted", "xgboost")])
async def test_it_trains_where_the_clientapp_alone_has_the_library(
    app: str, library: str, site: FederationContainer
) -> None:
    result = await trained(site, APPS / app)
    assert result.outcome == "completed", f"{result.reason}\n{result.log}"
    # Printed by the site, whose lines stay there.
    assert re.search(rf'"message": "{library} \d+\.\d+', site["supernode-1"].log())
    accuracies = [float(found) for found in re.findall(r"^accuracy ([\d.]+)$", result.log, re.MULTILINE)]
    assert len(accuracies) == 3
    assert accuracies[-1] >= 0.9, accuracies
    for role in ("serverapp", "supernode-1"):
        code, said = site[role].exec("python3", "-c", f"import {library}")
        assert code != 0
        assert "ModuleNotFoundError" in said
