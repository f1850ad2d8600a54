"""templates/tests/app.yaml"""

from __future__ import annotations

import tomllib

from charts import CHART, container, mounts, rendered


def test_every_file_of_the_app_is_where_it_belongs() -> None:
    chart = rendered("minimal")
    app = chart.one("ConfigMap", "test-app")
    folder = CHART / "files" / "test-app"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".py", ".toml")}
    mounted = {
        one["mountPath"].removeprefix("/app/"): one["subPath"]
        for one in container(chart.one("Pod", "test"))["volumeMounts"]
        if one["name"] == "app"
    }
    assert set(mounted) == files
    for place, key in mounted.items():
        assert app["data"][key].rstrip() == (folder / place).read_text().rstrip()
    assert "/app" not in mounts(container(chart.one("Pod", "test")))


def test_the_app_names_its_own_modules() -> None:
    project = tomllib.loads((CHART / "files" / "test-app" / "pyproject.toml").read_text())
    for component in project["tool"]["flwr"]["app"]["components"].values():
        assert (CHART / "files" / "test-app" / f"{component.partition(':')[0].replace('.', '/')}.py").exists()
