"""Where words, tables and JSON go: tables with colours on a terminal, plain aligned text when piped."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Cell:
    """A cell of a table; the style is one of rich's and shows on a terminal only."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Output:
    """The two streams of one command. With `as_json`, stdout carries the JSON document and nothing else."""

    as_json: bool = False

    def say(self, text: str) -> None:
        """A result for people."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def write(self, text: str) -> None:
        """What a run printed: as it is on a terminal, without its colours elsewhere."""
        stream = sys.stderr if self.as_json else sys.stdout
        stream.write(text if stream.isatty() and not os.environ.get("NO_COLOR") else _COLOURS.sub("", text))
        stream.flush()

    def note(self, text: str) -> None:
        """A remark that no script should have to parse: always on stderr."""
        print(text, file=sys.stderr, flush=True)

    def json(self, document: Any) -> None:
        """The result for programs; does nothing unless `--format json` was given."""
        if self.as_json:
            print(json.dumps(document, indent=2), flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
        """A table with one line per row; on a terminal without the columns that are empty."""
        rows = list(rows)
        if not sys.stdout.isatty():
            self._plain([[Cell(name.upper()) for name in columns], *rows])
            return
        # rich is loaded where its colours can be seen, and only there: it takes as long as all the rest.
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style="bold cyan")
        filled = [index for index in range(len(columns)) if any(row[index].text for row in rows)]
        for index in filled:
            table.add_column(columns[index], no_wrap=index == 0, overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[index].text, style=row[index].style) for index in filled))
        Console().print(table)

    def details(self, rows: Sequence[tuple[str, Cell]]) -> None:
        """One thing's properties, one per line."""
        if not sys.stdout.isatty():
            self._plain([(Cell(name + ":"), cell) for name, cell in rows])
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False)
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, cell in rows:
            table.add_row(name, Text(cell.text, style=cell.style))
        Console().print(table)

    @staticmethod
    def _plain(rows: Sequence[Sequence[Cell]]) -> None:
        texts = [[cell.text.replace("\n", " ") for cell in row] for row in rows]
        widths = [max(len(row[index]) for row in texts) for index in range(len(texts[0]))]
        for row in texts:
            print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def human_duration(seconds: float) -> str:
    """59s, 12m 3s, 5h 20m, 3d 4h."""
    whole = int(seconds)
    for large, small, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if whole >= size:
            return f"{whole // size}{large} {whole % size // (size // (24 if large == 'd' else 60))}{small}"
    return f"{whole}s"


def human_bytes(count: int) -> str:
    """1023 B, 1.5 KiB, 12 MiB: powers of 1024."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
