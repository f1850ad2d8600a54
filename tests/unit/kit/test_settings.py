"""Flags, environment, files and their precedence; every wrong value ends with one sentence."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr
from trellis_kit import logs
from trellis_kit.settings import Address, Bytes, Seconds, Settings, StockFlag, load, split_address


class Example(Settings):
    """A service."""

    insecure: bool = Field(False, description="no TLS")
    fleet_api_address: Address = Field(
        "0.0.0.0:9092", description="where nodes connect", json_schema_extra={"flags": ["--fleet-address"]}
    )
    grace: Seconds = Field(30.0, description="time to finish")
    cache: Bytes = Field(0, description="bytes kept")
    isolation: Literal["process", "subprocess"] = Field("process", description="who runs executors")
    app_env: tuple[str, ...] = Field((), description="variables for the app")
    workdir: Path | None = Field(None, description="folder")
    slots: int = Field(1, ge=1, description="parallel work")
    join_token: SecretStr | None = Field(None, description="token", json_schema_extra={"secret": True})


def parse(*argv: str, stock: tuple[StockFlag, ...] = (), **environ: str) -> Example:
    return load(Example, prog="example", argv=argv, environ=environ, stock_flags=stock)


def refused(capsys: pytest.CaptureFixture[str], *argv: str, **environ: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv, stock=(), **environ)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_defaults() -> None:
    settings = parse()
    assert settings == Example()
    assert not settings.insecure


def test_flag_beats_environment_beats_default() -> None:
    assert parse(TRELLIS_GRACE="5").grace == 5.0
    assert parse("--grace", "2m", TRELLIS_GRACE="5").grace == 120.0


def test_an_empty_variable_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(TRELLIS_GRACE="", TRELLIS_WORKDIR="", TRELLIS_INSECURE="", TRELLIS_JOIN_TOKEN_FILE="") == Example()
    parse(TRELLIS_NOBODYS="")
    assert capsys.readouterr().err == ""


def test_bool_flag_and_its_negation() -> None:
    assert parse("--insecure").insecure
    assert parse(TRELLIS_INSECURE="true").insecure
    assert not parse("--no-insecure", TRELLIS_INSECURE="true").insecure


def test_lists_repeat_and_split() -> None:
    assert parse("--app-env", "A", "--app-env", "B").app_env == ("A", "B")
    assert parse(TRELLIS_APP_ENV="A, B").app_env == ("A", "B")


def test_alias_and_equals() -> None:
    assert parse("--fleet-address=[::1]:0").fleet_api_address == "[::1]:0"


def test_units() -> None:
    assert parse("--cache", "2MiB").cache == 2 << 20
    assert parse("--grace", "1500ms").grace == 1.5


def test_secret_comes_from_a_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    for settings in (
        parse("--join-token-file", str(tmp_path / "token")),
        parse(TRELLIS_JOIN_TOKEN_FILE=str(tmp_path / "token")),
    ):
        assert settings.join_token is not None
        assert settings.join_token.get_secret_value() == "s3cret"
        assert "s3cret" not in repr(settings)
    assert parse(TRELLIS_JOIN_TOKEN="s3cret").join_token is None
    assert "--join-token-file: '/nowhere'" in refused(capsys, "--join-token-file", "/nowhere")
    (tmp_path / "empty").write_text("\n")
    assert "it is empty" in refused(capsys, "--join-token-file", str(tmp_path / "empty"))
    with pytest.raises(SystemExit):
        parse("--join-token", "s3cret")


def test_wrong_values_say_what_whence_and_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, TRELLIS_ISOLATION="docker")
    assert "TRELLIS_ISOLATION" in message
    assert "'docker'" in message
    assert "'process' or 'subprocess'" in message
    assert message.count("\n") == 1
    assert "--slots: '0'" in refused(capsys, "--slots", "0")
    assert "greater than or equal to 1" in refused(capsys, "--slots", "0")
    assert "12h" in refused(capsys, "--grace", "soon")
    assert "host:port" in refused(capsys, "--fleet-api-address", "9092")
    assert "true or false" in refused(capsys, TRELLIS_INSECURE="perhaps")


def test_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--grac" in refused(capsys, "--grac", "5")  # no abbreviations: a typo must not set something else


def test_stock_flags_and_unknown_variables_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(logs, "early", warnings.append)
    stock = StockFlag(("--flwr-dir", "--dir"), True, "apps are kept in memory.")
    parse("--dir", "/x", stock=(stock,), TRELLIS_GARCE="5")
    assert len(warnings) == 2
    assert "--flwr-dir" in warnings[0]
    assert "TRELLIS_GARCE" in warnings[1]


def test_help_names_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse("--help")
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "where nodes connect (default: 0.0.0.0:9092) [TRELLIS_FLEET_API_ADDRESS]" in text
    assert "(process, subprocess)" in text


@pytest.mark.parametrize("address", ["", "host", ":80", "host:x", "host:70000", "::1:80"])
def test_split_address_refuses(address: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_address(address)


def test_split_address() -> None:
    assert split_address("[::]:9092") == ("::", 9092)
    assert split_address("superlink:9092") == ("superlink", 9092)
