"""The page of releases is whole, and so is what writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matrix import ALL, BEGIN, COLUMNS, END, EXPLAINED, PAGE, Matrix, minor, releases, write


def shown(page: str) -> dict[str, dict[str, str]]:
    """The table's cells: release -> column -> word."""
    head, rule, *rows = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    names = [word.strip() for word in head.strip("|").split("|")]
    assert names == ["release", *COLUMNS]
    assert set(rule) <= set("|- ")
    cells = [[word.strip() for word in row.strip("|").split("|")] for row in rows]
    return {release: dict(zip(COLUMNS, words, strict=True)) for release, *words in cells}


def test_each_cell_of_the_page_is_good_or_explained() -> None:
    page = PAGE.read_text()
    cells = shown(page)
    assert list(cells) == list(ALL)
    for release, row in cells.items():
        for column, word in row.items():
            assert word == EXPLAINED.get((release, column), "yes"), (release, column)
    reasons = page.partition(END)[2]
    first, last = (".".join(map(str, minor(release))) for release in (min(EXPLAINED)[0], max(EXPLAINED)[0]))
    assert {column for _, column in EXPLAINED} == {"SuperLink"}
    assert f"| {first} to {last} | our SuperNode and command line on the stock SuperLink |" in reasons


def test_what_failed_or_was_not_tried_is_not_good(tmp_path: Path) -> None:
    found = Matrix(tmp_path / "build" / "cells.json")
    with found.cell("1.41.0", "SuperNode"):
        pass
    with pytest.raises(ZeroDivisionError), found.cell("1.24.0", "SuperNode"), found.cell("1.24.0", "SuperLink"):
        raise ZeroDivisionError
    with found.cell("1.24.0", "SuperNode"):  # something else worked; the cell stays as it is
        pass
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    write(page, found.kept())
    assert page.read_text().startswith(f"before\n{BEGIN}")
    assert page.read_text().endswith(f"{END}after\n")
    assert shown(page.read_text()) == {
        "1.24.0": {"SuperNode": "**no**", "command line": "-", "SuperLink": "**no**", "app library": "-"},
        "1.41.0": {"SuperNode": "yes", "command line": "-", "SuperLink": "-", "app library": "-"},
    }


def test_a_session_adds_to_those_before(tmp_path: Path) -> None:
    results = tmp_path / "cells.json"
    for release in ("1.41.0", "1.20.0"):
        with Matrix(results).cell(release, "SuperNode"):
            pass
    assert json.loads(results.read_text()) == {"1.41.0": {"SuperNode": True}, "1.20.0": {"SuperNode": True}}
    assert list(Matrix(results).kept()) == ["1.20.0", "1.41.0"]


def test_releases_are_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEASES", "all")
    assert releases() == ALL
    assert [minor(release) for release in ALL] == [(1, number) for number in range(20, 43)]
    monkeypatch.setenv("RELEASES", "1.24.0,1.41.0")
    assert releases() == ("1.24.0", "1.41.0")
    monkeypatch.delenv("RELEASES")
    assert set(releases()) < set(ALL)
