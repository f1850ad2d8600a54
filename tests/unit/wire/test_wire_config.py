"""Configuration values: parsed, flattened, fused, and sent both ways."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trellis_wire.config import (
    Config,
    ConfigError,
    flatten,
    from_appio,
    from_edge,
    fuse,
    parse_config_args,
    to_appio,
    to_edge,
)
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import records_pb2


@pytest.mark.parametrize(
    ("args", "config"),
    [
        ([], {}),
        ([""], {}),
        (["partition-id=0 num-partitions=2"], {"partition-id": 0, "num-partitions": 2}),
        (
            ['a=1 b=2.5 c=true d=\'x y\' e="q\'q" f=""'],
            {"a": 1, "b": 2.5, "c": True, "d": "x y", "e": "q'q", "f": ""},
        ),
        (["a=1", "b=2", "a=3"], {"a": 3, "b": 2}),
        (["train.lr=0.1 train.steps=3"], {"train.lr": 0.1, "train.steps": 3}),
        (
            ['a="x\\ny"\nb=-5 c=1e3 d=1_000 e=inf f=0x10'],
            {"a": "x\ny", "b": -5, "c": 1e3, "d": 1000, "e": math.inf, "f": 16},
        ),
        (["a='1' , b=2"], {"a": "1", "b": 2}),
    ],
)
def test_pairs_are_read_as_stock_reads_them(args: list[str], config: Config) -> None:
    parsed = parse_config_args(args)
    assert parsed == config
    assert list(map(type, parsed.values())) == list(map(type, config.values()))


@pytest.mark.parametrize("text", ["junk", "a=1 junk", "a=x", "a=1 a=2", "a=[1,2]", "a=2024-01-01", "a='x", "=1", "a="])
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config_args([text])


def test_a_toml_file_replaces_pairs(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('a = 1\n[train]\nlr = 0.5\n[train.deep]\nname = "é"\n')
    assert parse_config_args([str(file)]) == {"a": 1, "train.lr": 0.5, "train.deep.name": "é"}
    with pytest.raises(ConfigError, match="not both"):
        parse_config_args([str(file), "a=1"])
    with pytest.raises(ConfigError, match="No such file"):
        parse_config_args([str(tmp_path / "missing.toml")])
    for broken in (b"a = ", b"\xff\xfe"):
        file.write_bytes(broken)
        with pytest.raises(ConfigError, match="not valid TOML"):
            parse_config_args([str(file)])


def test_flatten_refuses_what_cannot_be_sent() -> None:
    with pytest.raises(ConfigError, match=r"'a\.b' is a list"):
        flatten({"a": {"b": [1]}})


def test_fuse_overrides_and_names_unknown_keys() -> None:
    app: Config = {"lr": 0.1, "rounds": 3}
    assert fuse(app, {"rounds": 5}) == {"lr": 0.1, "rounds": 5}
    assert app["rounds"] == 3
    with pytest.raises(ConfigError, match=r"no configuration key 'epochs'; it has: lr, rounds"):
        fuse(app, {"epochs": 1})


values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=9),
)


@given(st.dictionaries(st.text(max_size=9), values))
def test_values_survive_both_protocols_with_their_types(config: Config) -> None:
    for again in (from_edge(to_edge(config)), from_appio(to_appio(config))):
        assert again == config
        assert [type(again[key]) for key in config] == [type(value) for value in config.values()]


def test_values_too_large_and_missing_are_refused() -> None:
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(ConfigError, match="64 bits"):
            to_edge({"a": number})
    with pytest.raises(ConfigError, match="'a' is missing"):
        from_edge({"a": records_pb2.Scalar()})
    with pytest.raises(ConfigError, match="'a' is missing"):
        from_appio({"a": appio_pb2.Scalar()})
