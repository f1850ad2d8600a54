"""docs/security.md: each threat names what shows that it is stopped."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_each_threat_names_tests_that_are_there() -> None:
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in (ROOT / "docs" / "security.md").read_text().splitlines()
        if line.startswith("|")
    ]
    threats = [row for row in rows if row[0] != "threat" and not row[0].startswith("---")]
    assert len(threats) > 30
    for threat, defence, *shown in threats:
        assert defence, threat
        assert len(shown) == 1, threat
        for name in shown[0].split(","):
            path = ROOT / "tests" / name.strip()
            tests = path.glob("test_*.py") if path.is_dir() else [path]
            assert any("def test_" in one.read_text() for one in tests), f"{threat}: {name}"
