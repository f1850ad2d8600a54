"""What the example apps print."""

from __future__ import annotations

import re


def accuracies(log: str) -> list[float]:
    """The accuracy of each round, round 0 first."""
    return [float(found) for found in re.findall(r"^round \d+/\d+: accuracy ([\d.]+)", log, re.MULTILINE)]
