"""The images that tests in containers and on Kubernetes run, built from the tree as it is."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version as distribution_version
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEYCLOAK_STAND_IN = "trellis-test/keycloak:26.7.3"
_SECONDS = 1800


def build(*names: str) -> str:
    """All images of `make images`, or these; what it says of their sizes."""
    return _bash(ROOT / "scripts" / "build-images", *names)


def keycloak_stand_in() -> str:
    """An image like Keycloak's own, for where no registry answers."""
    _bash(ROOT / "tests" / "images" / "keycloak" / "build", KEYCLOAK_STAND_IN)
    return KEYCLOAK_STAND_IN


def version() -> str:
    """Their tag."""
    return os.environ.get("IMAGE_TAG") or distribution_version("trellis-kit")


def name(image: str) -> str:
    """What `build` calls one."""
    return f"{os.environ.get('IMAGE_PREFIX', 'trellis/')}{image}"


def _bash(script: Path, *words: str) -> str:
    argv = ["bash", str(script), *words]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS)
    assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout
