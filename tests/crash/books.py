"""What the ledger app prints, and what it must print when nothing is lost and nothing counts twice."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from trellis_testing import RunResult

LEDGER = Path(__file__).parent / "ledger"


@dataclass(frozen=True)
class Page:
    """One round: (partition, how often the site has worked so far, error code) of each reply, and the model's value."""

    round: int
    replies: list[tuple[int, int, int | None]]
    sum: float


def books(log: str) -> list[Page]:
    """Every round that the ServerApp finished."""
    pages = []
    for line in re.findall(r"^books (\{.*\})$", log, re.MULTILINE):
        page = json.loads(line)
        pages.append(Page(page["round"], [tuple(reply) for reply in page["replies"]], page["sum"]))
    return pages


def assert_kept(result: RunResult, *, sites: int, rounds: int) -> None:
    """The run completed; in each round each site answered once, having worked once more; the model is the right one."""
    assert result.outcome == "completed", f"{result.outcome}: {result.reason}\n{result.log}"
    value, expected = 0.0, []
    for number in range(1, rounds + 1):
        value += sum(value + 1 + partition for partition in range(sites))
        expected.append(Page(number, [(partition, number, None) for partition in range(sites)], value))
    assert books(result.log) == expected
