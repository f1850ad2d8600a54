"""What holds for every scenario of ci/: it lints, its pods are admitted as `restricted`, and name nothing twice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from charts import CHART, NAMESPACE, ROOT, SCENARIOS, Document, helm, rendered

everywhere = pytest.mark.parametrize("scenario", SCENARIOS)
SHORT_LIVED = ("certificates", "test")


def test_the_scenarios_are_those_of_the_docs() -> None:
    assert SCENARIOS == ["minimal", "oidc", "server-only", "site-only", "tls"]


def test_every_template_has_a_file_of_tests() -> None:
    templates = [path.relative_to(CHART / "templates") for path in (CHART / "templates").rglob("*") if path.is_file()]
    wanted = {
        "test_" + str(path.with_suffix("")).replace("/", "_").replace("-", "_").lower() + ".py"
        for path in templates
        if path.suffix in (".yaml", ".txt")
    }
    there = {path.name for path in (ROOT / "tests/kubernetes/templates").glob("test_*.py")}
    assert wanted <= there


@everywhere
def test_lints(scenario: str) -> None:
    values = CHART / "ci" / f"{scenario}-values.yaml"
    done = subprocess.run([helm(), "lint", "--strict", str(CHART), "-f", str(values)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@everywhere
def test_nothing_is_there_twice_and_everything_is_labelled(scenario: str) -> None:
    chart = rendered(scenario)
    hooks = ("before-hook-creation", "helm.sh/hook")
    keys = [
        (one["kind"], one["metadata"]["name"], any(hook in str(one["metadata"]) for hook in hooks)) for one in chart
    ]
    assert len(keys) == len(set(keys))
    for one in chart:
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "trellis", one["source"]
        assert labels["app.kubernetes.io/component"], one["source"]
        assert one["metadata"]["name"].startswith("trellis")
        assert len(one["metadata"]["name"]) <= 52


@everywhere
def test_pods_are_restricted(scenario: str) -> None:
    for name, pod in rendered(scenario).pods():
        spec, security = pod["spec"], pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(one) for one in ("hostNetwork", "hostPID", "hostIPC")), name
        assert not [one for one in spec.get("volumes", []) if "hostPath" in one], name
        for one in spec["containers"]:
            assert one["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            # Keycloak rewrites itself at its start.
            assert one["securityContext"].get("readOnlyRootFilesystem", one["name"] == "keycloak") is True, name


@everywhere
def test_no_pod_has_a_token_but_the_one_that_writes_certificates(scenario: str) -> None:
    for name, pod in rendered(scenario).pods():
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        assert pod["spec"]["automountServiceAccountToken"] is (component == "certificates"), name
        assert ("serviceAccountName" in pod["spec"]) is (component == "certificates"), name


@everywhere
def test_containers_have_limits_and_programs_probes(scenario: str) -> None:
    for name, pod in rendered(scenario).pods():
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for one in pod["spec"]["containers"]:
            assert one["resources"]["requests"]["cpu"], name
            assert one["resources"]["limits"]["memory"], name
            probes = [probe for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in one]
            assert len(probes) == (0 if component in SHORT_LIVED else 3), name
        if component not in SHORT_LIVED:
            [spread] = pod["spec"]["topologySpreadConstraints"]
            assert spread["topologyKey"] == "kubernetes.io/hostname"


@everywhere
def test_every_mount_has_its_volume(scenario: str) -> None:
    chart = rendered(scenario)
    claims = {
        one["metadata"]["name"]: {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        for one in chart.kind("StatefulSet")
    }
    for name, pod in chart.pods():
        there = {one["name"] for one in pod["spec"].get("volumes", [])} | claims.get(name, set())
        used = {mount["name"] for one in pod["spec"]["containers"] for mount in one.get("volumeMounts", [])}
        assert used == there, name


@everywhere
def test_all_images_can_come_from_one_registry(scenario: str) -> None:
    values: Document = {
        "image": {"registry": "images.example.org", "tag": "9.9", "pullSecrets": ["pull"]},
        "keycloak": {"image": {"registry": "images.example.org"}},
    }
    for name, pod in rendered(scenario, values).pods():
        assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}], name
        for one in pod["spec"]["containers"]:
            assert one["image"].startswith("images.example.org/"), name
            assert one["image"].endswith(":26.7.3" if one["name"] == "keycloak" else ":9.9"), name


@everywhere
def test_objects_are_of_the_namespace_they_are_installed_in(scenario: str) -> None:
    assert {one["metadata"].get("namespace", NAMESPACE) for one in rendered(scenario)} == {NAMESPACE}


@everywhere
def test_pods_of_the_command_line_run_where_the_operator_says(scenario: str) -> None:
    placed: Document = {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": [{"operator": "Exists"}]}
    chart = rendered(scenario, {"cli": placed})
    for name, pod in chart.pods():
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] in SHORT_LIVED:
            assert {key: pod["spec"].get(key) for key in placed} == placed, name


def test_it_can_be_part_of_another_chart(tmp_path: Path) -> None:
    """Helm gives parts a value `global`."""
    shutil.copytree(CHART, tmp_path / "charts" / "trellis")
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: all\nversion: 1.0.0\n")
    done = subprocess.run([helm(), "template", "all", str(tmp_path)], capture_output=True, text=True)
    assert "name: all-superlink" in done.stdout, done.stderr
