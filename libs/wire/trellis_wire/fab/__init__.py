"""Flower App Bundles: build one, look into one, unpack one (Flower 1.20-1.42)."""

from trellis_wire.fab.archive import MAX_MEMBERS, MAX_UNPACKED, inspect, unpack
from trellis_wire.fab.builder import FORMATS, FabFormat, build
from trellis_wire.fab.project import MAX_SIZE, FabError, FabInfo, fab_hash

__all__ = [
    "FORMATS",
    "MAX_MEMBERS",
    "MAX_SIZE",
    "MAX_UNPACKED",
    "FabError",
    "FabFormat",
    "FabInfo",
    "build",
    "fab_hash",
    "inspect",
    "unpack",
]
