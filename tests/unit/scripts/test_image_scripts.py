"""Building and pushing images, up to where Docker is asked: one list of images, and what is said where it cannot be."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BAKE = (ROOT / "docker-bake.hcl").read_text()
IMAGES = dict(re.findall(r'\{ name = "(.*)", file = "(.*)" \}', BAKE))
REGISTRY = "images.example.org/trellis"

# Writes down what it is asked. WITHOUT lists what it does not have: buildx, images, access.
DOCKER = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$1 $WITHOUT" in
  *buildx*buildx* | image*images* | push*access*) exit 1 ;;
esac
if [ "$1 $2" = "buildx bake" ]; then
  echo "$REGISTRY $VERSION $REVISION" >> "$CALLS"
  cat "$SECRETS/pip.conf" >> "$CALLS"
fi
"""


class Docker:
    """A docker command that does nothing."""

    def __init__(self, folder: Path) -> None:
        self._calls = folder / "calls"
        self._calls.touch()
        self._folder = folder / "bin"
        self._folder.mkdir()
        (self._folder / "docker").write_text(DOCKER)
        (self._folder / "docker").chmod(0o755)

    def push(self, *argv: str, without: str = "", **more: str) -> tuple[int, str]:
        """`make push`: its exit code, and what it said."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "IMAGE_"))}
        environment |= {"PATH": f"{self._folder}:{os.environ['PATH']}", "CALLS": str(self._calls), "WITHOUT": without}
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "push-images"), *argv],
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


def version() -> str:
    (found,) = re.findall(r'^version = "(.*)"$', (ROOT / "libs/kit/pyproject.toml").read_text(), re.MULTILINE)
    return str(found)


def test_each_image_is_a_target_of_its_dockerfile_for_both_processors() -> None:
    assert len(IMAGES) == 8
    for name, file in IMAGES.items():
        assert re.search(rf"^FROM .* AS {name}$", (ROOT / file).read_text(), re.MULTILINE), name
    assert 'platforms  = ["linux/amd64", "linux/arm64"]' in BAKE


def test_one_base_image_everywhere() -> None:
    (base,) = re.findall(r'^variable "BASE_IMAGE" \{ default = "(.*)" \}$', BAKE, re.MULTILINE)
    for file in set(IMAGES.values()):
        assert re.findall(r"^ARG BASE_IMAGE=(.*)$", (ROOT / file).read_text(), re.MULTILINE) == [base], file


def test_an_image_that_there_is_not() -> None:
    script = ROOT / "scripts" / "build-images"
    done = subprocess.run(["bash", str(script), "superlnk"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("There is no image superlnk; there are: superlink superlink-subprocess ")


def test_push_wants_a_registry(docker: Docker) -> None:
    code, said = docker.push()
    assert (code, docker.calls) == (2, [])
    assert "make push REGISTRY=" in said


def test_with_buildx_everything_is_built_and_told_what_pip_is_told(docker: Docker) -> None:
    code, said = docker.push(REGISTRY, PIP_TRUSTED_HOST="mirror.example.org")
    assert code == 0, said
    assert docker.calls[:2] == ["buildx version", "buildx bake --push"]
    assert re.fullmatch(rf"{re.escape(REGISTRY)} {re.escape(version())} ([0-9a-f]{{40}}|unknown)", docker.calls[2])
    assert "trusted-host = mirror.example.org" in docker.calls


def test_without_buildx_what_is_there_is_pushed(docker: Docker) -> None:
    code, said = docker.push(REGISTRY, without="buildx")
    assert code == 0, said
    assert "only" in said
    assert [call for call in docker.calls if call.startswith("push")] == [
        f"push --quiet {REGISTRY}/{name}:{version()}" for name in IMAGES
    ]
    assert f"tag trellis/cli:{version()} {REGISTRY}/cli:{version()}" in docker.calls


def test_push_before_images_are_built(docker: Docker) -> None:
    code, said = docker.push(REGISTRY, without="buildx images")
    assert code == 1
    assert f"There is no image trellis/superlink:{version()} to push; build them first: make images" in said
    assert not [call for call in docker.calls if call.startswith(("push", "tag"))]


def test_push_to_a_registry_that_does_not_know_who_asks(docker: Docker) -> None:
    code, said = docker.push(REGISTRY, without="buildx access")
    assert code == 1
    assert "docker login" in said


def test_what_pip_is_told_in_the_environment_is_told_where_pip_itself_is_missing(tmp_path: Path) -> None:
    """A module `pip` that is none stands in its way."""
    (tmp_path / "pip.py").write_text("raise SystemExit(1)")
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("certificates")
    told = {"PIP_INDEX_URL": "https://mirror.example.org/simple", "PIP_CERT": str(bundle), "PYTHONPATH": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | told
    (tmp_path / "out").mkdir()
    subprocess.run(
        ["python3", str(ROOT / "scripts" / "pip-secrets"), str(tmp_path / "out")], env=environment, check=True
    )
    assert (tmp_path / "out" / "pip.conf").read_text().splitlines() == [
        "[global]",
        "index-url = https://mirror.example.org/simple",
        "cert = /run/secrets/ca-bundle",
    ]
    assert (tmp_path / "out" / "ca-bundle").read_text() == "certificates"
