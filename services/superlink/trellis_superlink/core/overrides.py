"""Configuration values as text in the database."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from trellis_wire.config import Scalar


def dump_config(config: Mapping[str, Scalar]) -> str:
    """JSON; bytes become {"base64": ...}."""
    return json.dumps(
        {
            key: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
            for key, value in config.items()
        }
    )


def load_config(text: str) -> dict[str, Scalar]:
    return {
        key: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
        for key, value in json.loads(text).items()
    }
