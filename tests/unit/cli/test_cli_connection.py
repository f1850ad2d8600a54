"""Finding a SuperLink: both of stock's files, what wins, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from trellis_cli.connection import connection_names, direct, find
from trellis_cli.errors import UsageError


def config(home: Path, text: str) -> Path:
    file = home / ".flwr" / "config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def pyproject(folder: Path, text: str) -> Path:
    file = folder / "pyproject.toml"
    file.write_text(text)
    return file


OLD = """
[tool.flwr.federations]
default = "near"
[tool.flwr.federations.near]
address = "near.example:9093"
root-certificates = "ca.pem"
[tool.flwr.federations.simulation]
options.num-supernodes = 10
"""
NEW = """
[superlink]
default = "far"
[superlink.far]
address = "far.example:9093"
insecure = true
federation = "@me/mine"
[superlink.local]
address = ":local:"
"""


def test_reads_the_apps_pyproject_as_flower_1_25_does(tmp_path: Path) -> None:
    file = pyproject(tmp_path, OLD)
    (tmp_path / "ca.pem").write_text("a certificate")
    before = file.read_bytes()
    found = find(None, tmp_path)
    assert (found.address, found.insecure) == ("near.example:9093", False)
    assert found.root_certificates == tmp_path / "ca.pem"
    assert file.read_bytes() == before


def test_reads_config_toml_as_flower_1_26_does(home: Path, tmp_path: Path) -> None:
    config(home, NEW)
    found = find(None, tmp_path)
    assert (found.address, found.insecure, found.federation) == ("far.example:9093", True, "@me/mine")
    assert connection_names() == (["far", "local"], "far")


def test_flwr_home_moves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text(NEW)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert find("far", tmp_path / "no-app").address == "far.example:9093"


def test_the_app_wins_and_names_reach_both_files(home: Path, tmp_path: Path) -> None:
    pyproject(tmp_path, OLD)
    (tmp_path / "ca.pem").write_text("a certificate")
    config(home, NEW)
    assert find(None, tmp_path).name == "near"
    assert find("far", tmp_path).name == "far"


def test_an_only_connection_needs_no_default(home: Path, tmp_path: Path) -> None:
    config(home, '[superlink.one]\naddress = "one.example:9093"\n')
    assert find(None, tmp_path).address == "one.example:9093"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (NEW, "nowhere", ["'nowhere'", "far, local", "config.toml"]),
        (NEW, "local", [":local:", "trellis up", "make demo"]),
        ("[superlink.x]\ninsecure = true\n", "x", ["no address", "trellis up"]),
        ('[superlink.x]\naddress = "http://a:1"\n', "x", ["without a scheme", "[superlink.x]"]),
        ('[superlink.x]\naddress = "a.example"\n', "x", ["no port", "9093"]),
        ('[superlink.x]\naddress = "a:1"\ninsecure = "yes"\n', "x", ["`insecure`", "true or false"]),
        ('[superlink.x]\naddress = "a:1"\nroot-certificates = "ca.pem"\n', "x", ["absolute"]),
        ('[superlink.x]\naddress = "a:1"\nroot-certificates = "/nowhere/ca.pem"\n', "x", ["/nowhere/ca.pem"]),
        ('[superlink]\ndefault = "gone"\n', None, ["'gone'", "[superlink.gone]"]),
        ("[superlink.x\n", "x", ["not valid TOML", "config.toml"]),
        ("", None, ["No SuperLink is configured", "[superlink.mine]", "--superlink"]),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(
    home: Path, tmp_path: Path, text: str, name: str | None, said: list[str]
) -> None:
    config(home, text)
    with pytest.raises(UsageError) as caught:
        find(name, tmp_path)
    for part in said:
        assert part in str(caught.value)


def test_a_simulation_in_pyproject_is_explained(tmp_path: Path) -> None:
    pyproject(tmp_path, OLD)
    with pytest.raises(UsageError, match=r"\[tool\.flwr\.federations\.simulation\].*trellis up"):
        find("simulation", tmp_path)


def test_certificates_and_insecure_contradict_each_other(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    with pytest.raises(UsageError, match="take one of the two out"):
        direct("a:1", insecure=True, root_certificates=tmp_path / "ca.pem")
