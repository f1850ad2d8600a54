"""scripts/chart: values.yaml, its schema, the programs' settings and the docs do not drift apart unseen."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OF_THE_CHART = (
    "helm",
    "scripts/chart",
    "docs/helm-values.md",
    "compose/keycloak/realm.json",
    "libs/kit/pyproject.toml",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the script reads and writes, to be changed."""
    for place in OF_THE_CHART:
        source, target = ROOT / place, tmp_path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    return tmp_path


def chart(root: Path, *words: str) -> tuple[int, str]:
    """Its exit code and what it says; in this process, as its imports take their time."""
    path = root / "scripts" / "chart"
    loader = SourceFileLoader("chart", str(path))
    spec = spec_from_loader("chart", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            code = int(module.main(list(words)))
    except SystemExit as end:
        return 1, str(end.code)
    return code, said.getvalue()


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def test_what_is_in_the_repository_fits() -> None:
    assert chart(ROOT, "--check") == (0, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: replace(root / "helm/trellis/values.yaml", "clusterDomain:", "news: 1\nclusterDomain:"),
            "news is in values.yaml, and not described",
        ),
        (
            lambda root: replace(root / "helm/trellis/values.yaml", "clusterDomain: cluster.local\n", ""),
            "clusterDomain is described, and not in values.yaml",
        ),
        (
            lambda root: replace(root / "helm/trellis/values.yaml", "maxReplicas: 4", "maxReplicas: four"),
            "serverapp.autoscaling.maxReplicas is of type string, and described as integer",
        ),
        (
            lambda root: replace(root / "helm/trellis/values.yaml", "source: job", "source: magic"),
            "tls.source is 'magic', and described as one of",
        ),
        (
            lambda root: replace(root / "helm/trellis/values.schema.yaml", ", description: IngressClass.", ""),
            "access.ingress.className is not described",
        ),
        (
            lambda root: replace(root / "helm/trellis/values.schema.yaml", "IngressClass.", "Its class."),
            "values.schema.json is not up to date: make chart",
        ),
        (
            lambda root: replace(root / "docs/helm-values.md", "IngressClass.", "Its class."),
            "docs/helm-values.md is not up to date: make chart",
        ),
        (
            lambda root: replace(root / "compose/keycloak/realm.json", "researcher", "scientist"),
            "helm/trellis/files/realm.json is not up to date: make chart",
        ),
        (
            lambda root: replace(root / "libs/kit/pyproject.toml", 'version = "', 'version = "9.'),
            "appVersion in Chart.yaml is not the version of libs/kit",
        ),
        (
            lambda root: replace(root / "helm/trellis/values.schema.yaml", "executor_slots", "executor_slts"),
            "has no executor_slts",
        ),
        (
            lambda root: replace(root / "helm/trellis/files/removed.yaml", "\ningress:", "\nclusterDomain:"),
            "files/removed.yaml: there is a value clusterDomain",
        ),
    ],
)
def test_what_does_not_fit_is_told(copy: Path, change: Callable[[Path], None], said: str) -> None:
    assert chart(copy, "--check") == (0, "")
    change(copy)
    code, told = chart(copy, "--check")
    assert code == 1
    assert said in told


def test_writes_what_follows(copy: Path) -> None:
    replace(copy / "helm/trellis/values.schema.yaml", "IngressClass.", "Its class.")
    assert chart(copy) == (0, "")
    assert chart(copy, "--check") == (0, "")
    assert "Its class." in (copy / "docs/helm-values.md").read_text()


def test_settings_are_those_of_the_programs() -> None:
    schema = json.loads((ROOT / "helm/trellis/values.schema.json").read_text())
    settings = schema["properties"]["superlink"]["properties"]["settings"]
    assert settings["additionalProperties"] is False
    assert settings["properties"]["retention"]["type"] == ["number", "string"]
    assert settings["properties"]["runs-per-account"]["type"] == "integer"
    assert settings["properties"]["unknown-supernodes"]["enum"] == ["admit", "hold", "refuse"]
    assert "isolation" not in settings["properties"]
    site = schema["properties"]["supernodes"]["items"]["properties"]["clientapp"]["properties"]["settings"]
    assert "guest-lifetime" in site["properties"]
