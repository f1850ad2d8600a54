"""Which stock releases are tried, and the table of what worked: docs/compatibility.md."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).parents[2]
RESULTS = _ROOT / "build" / "compatibility.json"
PAGE = _ROOT / "docs" / "compatibility.md"

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


def named() -> bool:
    """Whether releases were asked for: then each has to show by itself what `make test` shows of several at once."""
    return bool(os.environ.get("RELEASES"))


def minor(release: str) -> tuple[int, int]:
    major, number, *_ = release.split(".")
    return int(major), int(number)


@dataclass
class Matrix:
    """What worked in this session, release -> column -> True or False; added to the file `results` as it is found."""

    results: Path
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
        else:
            row.setdefault(column, True)
        finally:
            self._save()

    def kept(self) -> dict[str, dict[str, bool]]:
        """The cells of all sessions, the oldest release first."""
        kept: dict[str, dict[str, bool]] = json.loads(self.results.read_text()) if self.results.exists() else {}
        return dict(sorted(kept.items(), key=lambda item: minor(item[0])))

    def _save(self) -> None:
        kept = self.kept()
        for release, row in self.cells.items():
            kept.setdefault(release, {}).update(row)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        self.results.write_text(json.dumps(kept, indent=1) + "\n")


BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"
_WORDS = {True: "yes", False: "**no**", None: "-"}

EXPLAINED = {(release, "SuperLink"): "no: see below" for release in ALL if minor(release) < (1, 24)}
"""Cells that nothing is run for; the page says why."""


def table(cells: Mapping[str, Mapping[str, bool]]) -> str:
    """The cells in Markdown; "-" for what was not tried."""
    head = ("release", *COLUMNS)
    lines = [head, tuple("---" for _ in head)]
    for release, row in cells.items():
        words = (EXPLAINED.get((release, column), _WORDS[row.get(column)]) for column in COLUMNS)
        lines.append((release, *words))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(page: Path, cells: Mapping[str, Mapping[str, bool]]) -> None:
    """Puts the table into the page, between the marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}{table(cells)}{END}{rest.partition(END)[2]}")
