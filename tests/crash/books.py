"""What the ledger app prints, and what it must print when nothing is lost and nothing counts twice."""

import json
import re
from collections.abc import Mapping
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


def assert_kept(
    result: RunResult, *, sites: int, rounds: int, errors: Mapping[tuple[int, int], int] | None = None
) -> None:
    """The run completed; in each round each site answered once, having worked once more; the model is the right one.

    `errors`: the codes of those replies, by round and partition, that are errors; work of that round does not count.
    """
    assert result.outcome == "completed", f"{result.outcome}: {result.reason}\n{result.log}"
    assert books(result.log) == pages(sites, rounds, errors or {})


def pages(sites: int, rounds: int, errors: Mapping[tuple[int, int], int]) -> list[Page]:
    """What the books are when nothing is lost and nothing counts twice."""
    value, worked, expected = 0.0, [0] * sites, []
    for number in range(1, rounds + 1):
        replies: list[tuple[int, int, int | None]] = []
        total = value
        for partition in range(sites):
            if (number, partition) in errors:
                replies.append((-1, 0, errors[number, partition]))
                continue
            worked[partition] += 1
            replies.append((partition, worked[partition], None))
            total += value + 1 + partition
        value = total
        expected.append(Page(number, sorted(replies), value))
    return expected
