"""The values of metric and config records as protobuf: which arm each Python value takes (Flower 1.20-1.42).

An int is sint64, or uint64 above 2^63-1; a list has the type of its first element, and an empty one takes the arm that
Flower tries first. Order of keys is kept, as the bytes are hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from trellis_wire.objects import ObjectError
from trellis_wire.pb.edge import records_pb2

MetricValue = int | float | list[int] | list[float]
ConfigValue = bool | int | float | str | bytes | list[bool] | list[int] | list[float] | list[str] | list[bytes]

_R = TypeVar("_R", records_pb2.MetricRecord, records_pb2.ConfigRecord)

_INT64_MAX: Final = 2**63 - 1
_ARMS: Final[Mapping[type, tuple[str, str]]] = {
    bool: ("bool", "bool_list"),
    int: ("sint64", "sint_list"),
    float: ("double", "double_list"),
    str: ("string", "string_list"),
    bytes: ("bytes", "bytes_list"),
}
# The first of each is an empty list's type.
_METRIC_TYPES: Final = (float, int)
_CONFIG_TYPES: Final = (bool, int, float, str, bytes)


def encode_metrics(items: Mapping[str, MetricValue]) -> bytes:
    """The body of a MetricRecord object. TypeError for a value that it cannot hold."""
    return _encode(records_pb2.MetricRecord(), items, _METRIC_TYPES)


def encode_configs(items: Mapping[str, ConfigValue]) -> bytes:
    """The body of a ConfigRecord object. TypeError for a value that it cannot hold."""
    return _encode(records_pb2.ConfigRecord(), items, _CONFIG_TYPES)


def decode_metrics(body: bytes) -> dict[str, MetricValue]:
    """From the body of a MetricRecord object. ObjectError."""
    return _decode(records_pb2.MetricRecord, body)


def decode_configs(body: bytes) -> dict[str, ConfigValue]:
    """From the body of a ConfigRecord object. ObjectError."""
    return _decode(records_pb2.ConfigRecord, body)


def _encode(record: _R, items: Mapping[str, Any], types: tuple[type, ...]) -> bytes:
    for key, value in items.items():
        try:
            _set(record.items.add(key=key).value, value, types)
        except (TypeError, ValueError) as error:
            names = ", ".join(kind.__name__ for kind in types)
            raise TypeError(
                f"The value of {key!r} fits into no record; use {names} or a list of one of them."
            ) from error
    return record.SerializeToString(deterministic=True)


def _set(proto: Any, value: Any, types: tuple[type, ...]) -> None:
    entries = value if isinstance(value, list) else [value]
    kind = type(entries[0]) if entries else types[0]
    if kind not in types or not all(isinstance(entry, kind) for entry in entries):
        raise TypeError
    single, several = _ARMS[kind]
    if kind is int and any(entry > _INT64_MAX for entry in entries):
        single, several = "uint64", "uint_list"
    if isinstance(value, list):
        arm = getattr(proto, several)
        arm.SetInParent()
        arm.vals.extend([int(entry) for entry in entries] if kind is int else entries)  # True counts as 1, as in Flower
    else:
        setattr(proto, single, value)


def _decode(kind: type[_R], body: bytes) -> dict[str, Any]:
    try:
        record = kind.FromString(body)
    except DecodeError as error:
        raise ObjectError(f"The {kind.__name__} object's body cannot be read; send it as Flower encodes it.") from error
    items: dict[str, Any] = {}
    for item in record.items:
        arm = item.value.WhichOneof("value")
        if arm is None:
            raise ObjectError(f"The {kind.__name__}'s entry {item.key[:80]!r} has no value; send one or leave it out.")
        value = getattr(item.value, arm)
        items[item.key] = list(value.vals) if arm.endswith("_list") else value
    return items
