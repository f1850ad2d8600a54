"""What real Flower peers sent, recorded between stock releases 1.20.0, 1.24.0, 1.26.1, 1.38.0 and 1.41.0."""

import base64
import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trellis_wire.pb.edge import message_pb2

VECTORS = Path(__file__).with_name("vectors")


@dataclass(frozen=True)
class Captured:
    """One message as it was announced: metadata and tree; its objects are in `objects()`."""

    release: str
    kind: str  # instruction or reply
    metadata: message_pb2.Metadata
    tree: message_pb2.ObjectTree


@cache
def _captures() -> dict[str, Any]:
    captures: dict[str, Any] = json.loads(gzip.decompress((VECTORS / "captures.json.gz").read_bytes()))
    return captures


@cache
def objects() -> dict[str, bytes]:
    """Every captured object's content by its announced id."""
    captures = _captures()
    return {oid: base64.b64decode(text) for oid, text in zip(captures["ids"], captures["objects"], strict=True)}


@cache
def messages() -> list[Captured]:
    """Every captured message, with content or with an error."""
    return [
        Captured(
            entry["release"],
            entry["kind"],
            message_pb2.Metadata.FromString(bytes.fromhex(entry["metadata"])),
            message_pb2.ObjectTree.FromString(base64.b64decode(entry["tree"])),
        )
        for entry in _captures()["messages"]
    ]


def signatures() -> list[dict[str, Any]]:
    """The signed headers of some captured calls."""
    entries: list[dict[str, Any]] = json.loads((VECTORS / "signatures.json").read_text())
    return entries


def fabs() -> list[dict[str, Any]]:
    """App trees and the hashes that stock Flower gives their FABs; see record_fabs.py."""
    cases: list[dict[str, Any]] = json.loads((VECTORS / "fabs.json").read_text())
    return cases
