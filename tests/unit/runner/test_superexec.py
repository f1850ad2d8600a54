"""`flower-superexec` becomes the executor that stock's --plugin-type names."""

from __future__ import annotations

from pathlib import Path

import pytest
from trellis_kit.federation import StartProblem
from trellis_runner import superexec


@pytest.mark.parametrize("plugin", ["serverapp", "clientapp"])
@pytest.mark.parametrize("joined", [False, True])
def test_the_plugin_type_names_the_program(plugin: str, joined: bool) -> None:
    given = [f"--plugin-type={plugin}"] if joined else ["--plugin-type", plugin]
    program, *rest = superexec.executor_argv(["--insecure", *given, "--appio-api-address", "superlink:9091"])
    assert Path(program).name == f"trellis-{plugin}"
    assert rest == ["--insecure", "--appio-api-address", "superlink:9091"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--insecure"], "--plugin-type is missing; there are: serverapp, clientapp"),
        (["--plugin-type"], "--plugin-type is missing"),
        (["--plugin-type", "simulation"], "--plugin-type 'simulation' is not hosted here"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["flower-superexec", *arguments])
    with pytest.raises(SystemExit) as end:
        superexec.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_an_image_that_hosts_the_other_side_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise StartProblem(f"{name} is not installed")

    monkeypatch.setattr(superexec, "find_program", nothing)
    with pytest.raises(ValueError, match=r"does not host clientapps \(trellis/superexec and trellis/clientapp do\)"):
        superexec.executor_argv(["--plugin-type", "clientapp"])
