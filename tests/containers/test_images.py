"""What is in the images, what is not, and what their Dockerfiles look like to a linter."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import CommandFailed, command
from compose_world import ROOT, docker, image, inspect

pytestmark = [pytest.mark.usefixtures("images"), pytest.mark.timeout(900)]

HOSTS = ("serverapp", "superexec", "clientapp", "superlink-subprocess", "supernode-subprocess")
DOCKERFILES = sorted(
    path.relative_to(ROOT) for folder in ("cli", "examples", "services") for path in (ROOT / folder).rglob("Dockerfile")
)
HADOLINT = ROOT / ".trellis" / "containers" / "bin" / "hadolint"
OURS = ("superlink", "supernode", "cli", *HOSTS)


def inside(name: str, *argv: str) -> str:
    """What a program says in a fresh container of an image, however it ends."""
    return docker("run", "--rm", "--network", "none", "--entrypoint", argv[0], image(name), *argv[1:], check=False)


@pytest.mark.parametrize("name", OURS)
def test_what_an_image_says_of_itself(name: str) -> None:
    found = inspect(image(name))["Config"]
    labels = found["Labels"]
    assert labels["org.opencontainers.image.title"] == f"trellis/{name}"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == version("trellis-kit")
    assert labels["org.opencontainers.image.revision"] == command("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()
    assert found["User"] == "49999:49999"
    assert found["Entrypoint"][:3] == ["/usr/bin/tini", "-s", "--"]
    if name != "cli":  # which serves nothing
        assert found["Healthcheck"]["Test"][:2] == ["CMD", "/opt/trellis/bin/python"]


@pytest.mark.parametrize("name", OURS)
def test_flwr_is_where_apps_are_hosted_and_in_their_environment_alone(name: str) -> None:
    assert "No module named 'flwr'" in inside(name, "/opt/trellis/bin/python", "-c", "import flwr")
    if name in HOSTS:
        assert inside(name, "python3", "-c", "import flwr, sys; print(sys.prefix)").strip() == "/app/venv"
    else:
        folders = inside(name, "find", "/opt", "/app", "/usr", "/var/lib", "-type", "d", "-name", "flwr*").split()
        assert folders == (["/var/lib/flwr"] if name == "cli" else [])


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("superlink", "trellis-superlink flower-superlink"),
        ("superlink-subprocess", "trellis-superlink flower-superlink"),
        ("supernode", "trellis-supernode flower-supernode"),
        ("supernode-subprocess", "trellis-supernode flower-supernode"),
        ("serverapp", "trellis-serverapp flwr-serverapp flower-superexec"),
        ("clientapp", "trellis-clientapp flwr-clientapp flower-superexec"),
        ("superexec", "flower-superexec"),
        ("cli", "trellis flwr"),
    ],
)
def test_stocks_names_are_our_programs(name: str, programs: str) -> None:
    """Also where flwr's own are installed: stock's Compose files start programs by their names."""
    found = inside(name, "sh", "-c", f'for one in {programs}; do readlink "$(command -v "$one")"; done').split()
    assert len(found) == len(programs.split())
    assert all(path.startswith("/opt/trellis/bin/trellis") for path in found), found


def test_the_superlink_is_small(images: str) -> None:
    """At most 150 MB over its base."""
    sizes = {found[0]: int(found[1]) for found in re.findall(r"^(\S+).* (\d+) MB", images, re.MULTILINE)}
    (base,) = re.findall(r"\(base\) +(\d+) MB", images)
    (superlink,) = (size for name, size in sizes.items() if re.search(r"\bsuperlink:", name))
    assert 0 < superlink - int(base) <= 150


def test_what_pip_is_told_stays_out_of_the_image(tmp_path: Path) -> None:
    """An index's address can hold a password; here it is a word among the trusted hosts."""
    told = "password-of-an-index"
    environment = {
        "PIP_TRUSTED_HOST": f"{os.environ.get('PIP_TRUSTED_HOST', '')} {told}.example.test".strip(),
        "IMAGE_PREFIX": "trellis-test/told-",
        "BUILD_OPTIONS": "--no-cache",
    }
    command("python3", str(ROOT / "scripts" / "pip-secrets"), str(tmp_path), env=environment)
    assert told in (tmp_path / "pip.conf").read_text()
    command("bash", str(ROOT / "scripts" / "build-images"), "cli", env=environment, timeout=600)
    tag = "trellis-test/told-cli:latest"
    try:
        for said in (docker("history", "--no-trunc", tag), docker("inspect", tag)):
            assert "trellis_cli.container" in said
            assert told not in said
            assert "/run/secrets" not in said
        grep = ("--user", "0:0", "--entrypoint", "grep", tag, "-rls", told)
        found = docker(
            "run", "--rm", "--network", "none", *grep, "/etc", "/opt", "/root", "/tmp", "/usr", "/var", check=False
        )
        assert found == ""
    finally:
        docker("rmi", "--force", inspect(tag)["Id"])


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_dockerfiles_are_what_hadolint_wants(path: Path) -> None:
    command(str(HADOLINT), "--config", str(ROOT / ".hadolint.yaml"), str(ROOT / path))


def test_hadolint_looks() -> None:
    with pytest.raises(CommandFailed, match="DL3006"):
        command("sh", "-c", f"printf 'FROM debian\n' | {HADOLINT} -")
