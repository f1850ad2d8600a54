"""The chart as helm renders it, parsed: `rendered("oidc")`, or with values over a scenario's."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "trellis"
SCENARIOS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "trellis", "fl"

Document = dict[str, Any]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, where it was built


class Refused(Exception):
    """helm did not render; the text is what it said."""


def helm() -> str:
    """The program: scripts/install-test-tools brings it."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trellis" / "bin" / "helm"
    found = str(cached) if cached.exists() else shutil.which("helm")
    assert found is not None, "helm is missing: TESTS=tests/kubernetes bash scripts/install-test-tools"
    return found


class Rendered(list[Document]):
    """All documents of a release; those of hooks, too."""

    def kind(self, kind: str) -> list[Document]:
        return [one for one in self if one["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {one["metadata"]["name"] for one in self.kind(kind)}

    def one(self, kind: str, name: str) -> Document:
        [found] = [one for one in self.kind(kind) if one["metadata"]["name"] == f"{RELEASE}-{name}"]
        return found

    def of(self, template: str) -> Rendered:
        """What came out of templates/TEMPLATE.yaml."""
        return Rendered(one for one in self if one["source"] == f"{template}.yaml")

    def pods(self) -> Iterator[tuple[str, Document]]:
        """Every pod or template of pods, with the name of what makes it."""
        for one in self:
            spec = one.get("spec") or {}
            if one["kind"] == "Pod":
                yield one["metadata"]["name"], one
            elif one["kind"] == "CronJob":
                yield one["metadata"]["name"], spec["jobTemplate"]["spec"]["template"]
            elif one["kind"] in ("StatefulSet", "Deployment", "Job"):
                yield one["metadata"]["name"], spec["template"]

    def text(self) -> str:
        """As a file that kubectl and kubeconform take."""
        return yaml.safe_dump_all([{key: value for key, value in one.items() if key != "source"} for one in self])


def rendered(scenario: str | None = None, values: Document | None = None, release: str = RELEASE) -> Rendered:
    """The release with a scenario's values (those of values.yaml without one), and `values` over them. Refused."""
    return copy.deepcopy(_rendered(scenario, json.dumps(values or {}), release))


@functools.cache
def _rendered(scenario: str | None, values: str, release: str) -> Rendered:
    return parsed(_helm(CHART, scenario, values, release))


def notes(scenario: str | None = None, values: Document | None = None) -> str:
    """What an install says at its end. Only an install shows it, so that here it is rendered as a document. Refused."""
    with tempfile.TemporaryDirectory(prefix="trellis-chart-") as folder:
        chart = Path(folder) / "trellis"
        shutil.copytree(CHART, chart)
        said = (chart / "templates" / "NOTES.txt").read_text()
        (chart / "templates" / "NOTES.txt").unlink()
        wrapped = (
            '{{- define "said" }}'
            + said
            + '{{ end }}\nkind: Notes\nmetadata: { name: notes }\nsaid: {{ include "said" . | toJson }}\n'
        )
        (chart / "templates" / "notes.yaml").write_text(wrapped)
        [document] = parsed(_helm(chart, scenario, json.dumps(values or {}))).kind("Notes")
    return str(document["said"])


def refused(values: Document, scenario: str | None = None, release: str = RELEASE) -> str:
    """What helm says instead of rendering."""
    try:
        rendered(scenario, values, release)
    except Refused as said:
        return str(said)
    raise AssertionError(f"helm renders {values}")


def parsed(text: str) -> Rendered:
    """helm's output, each document with the template that it is from."""
    found = Rendered()
    for part in text.split("\n---\n# Source: trellis/templates/")[0 if text.startswith("# Source") else 1 :]:
        source, _, body = part.partition("\n")
        document = yaml.load(body + "\n", Loader=_LOADER)
        if document:
            found.append({**document, "source": source})
    return found


def _helm(chart: Path, scenario: str | None, values: str, release: str = RELEASE) -> str:
    files = [] if scenario is None else ["-f", str(CHART / "ci" / f"{scenario}-values.yaml")]
    argv = [helm(), "template", release, str(chart), "--namespace", NAMESPACE, *files, "-f", "-"]
    done = subprocess.run(
        argv, input=values, capture_output=True, text=True, timeout=60, env={**os.environ, "KUBECONFIG": "/dev/null"}
    )
    if done.returncode:
        raise Refused(done.stderr)
    return "\n" + done.stdout


# ---- looking into documents --------------------------------------------------------------------------------------


def container(document: Document, name: str | None = None) -> Document:
    """The container of a workload's or a pod's; of several, the one named."""
    spec = document["spec"]
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    found: list[Document] = spec.get("template", {}).get("spec", spec)["containers"]
    [one] = [one for one in found if name in (None, one["name"])]
    return one


def env(one: Document) -> dict[str, str]:
    """The environment of a container."""
    return {entry["name"]: entry.get("value", "") for entry in one["env"]}


def mounts(one: Document) -> dict[str, str]:
    """Which volume is where in a container."""
    return {entry["mountPath"]: entry["name"] for entry in one["volumeMounts"]}


def volume(document: Document, name: str) -> Document:
    """A workload's volume."""
    volumes: list[Document] = document["spec"].get("template", document)["spec"]["volumes"]
    [one] = [one for one in volumes if one["name"] == name]
    return one


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()
