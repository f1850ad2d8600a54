"""The environment that programs under test get: nothing of the developer's or the machine's."""

import os
from pathlib import Path


def clean_environment(home: Path, *programs: Path) -> dict[str, str]:
    """No proxy, no update check, no telemetry, a home of its own; `programs` come first on PATH.

    Stock Flower starts its helper programs by name (1.20-1.42), so its `bin` folder has to be among them.
    """
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.pathsep.join([*map(str, programs), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "FLWR_HOME": str(home / ".flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
        "LANG": "C.UTF-8",
    }
