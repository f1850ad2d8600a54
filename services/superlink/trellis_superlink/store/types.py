"""Column types that behave alike on SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import BigInteger, Dialect
from sqlalchemy.types import TypeDecorator

_WRAP = 1 << 64
_HALF = 1 << 63


class Id64(TypeDecorator[int]):
    """An unsigned 64-bit id (node, run, task) in a signed 64-bit column, the only one both databases have."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        return value - _WRAP if value is not None and value >= _HALF else value

    def process_result_value(self, value: int | None, dialect: Dialect) -> int | None:
        return value + _WRAP if value is not None and value < 0 else value
