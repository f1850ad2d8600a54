"""Which stock releases are tried, and the table of what worked: docs/compatibility.md."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ALL = (
    *("1.20.0", "1.21.0", "1.22.0", "1.23.0", "1.24.0", "1.25.0", "1.26.1", "1.27.0", "1.28.0", "1.29.0", "1.30.0"),
    *("1.31.0", "1.32.1", "1.33.0", "1.34.0", "1.35.0", "1.36.0", "1.37.0", "1.38.0", "1.39.0", "1.40.0", "1.41.0"),
    "1.42.0",
)
"""Every minor release that Trellis serves."""

SOME = ("1.20.0", "1.24.0", "1.29.0", "1.33.0", "1.36.0", "1.38.0", "1.41.0", "1.42.0")
"""Those of `make test`: each side of each change of the protocol."""

COLUMNS = ("SuperNode", "command line", "SuperLink", "app library")


def releases() -> tuple[str, ...]:
    """RELEASES=all, or versions with commas between; else some."""
    wanted = os.environ.get("RELEASES", "")
    if wanted == "all":
        return ALL
    return tuple(wanted.split(",")) if wanted else SOME


def minor(release: str) -> tuple[int, int]:
    major, number, *_ = release.split(".")
    return int(major), int(number)


@dataclass
class Matrix:
    """What worked in this session: release -> column -> True or False."""

    cells: dict[str, dict[str, bool]] = field(default_factory=dict)

    @contextmanager
    def cell(self, release: str, column: str) -> Iterator[None]:
        """The cell is good when this ends without an error, and was good in whatever else tried it."""
        row = self.cells.setdefault(release, {})
        try:
            yield
        except BaseException:
            row[column] = False
            raise
        row.setdefault(column, True)

    def save(self, path: Path) -> None:
        """Adds this session's cells to those of earlier ones."""
        kept = json.loads(path.read_text()) if path.exists() else {}
        for release, row in self.cells.items():
            kept.setdefault(release, {}).update(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(sorted(kept.items(), key=lambda item: minor(item[0]))), indent=1) + "\n")
