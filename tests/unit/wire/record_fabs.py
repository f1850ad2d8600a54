"""Records what stock Flower makes of the app trees in vectors/fabs.json: run it with a stock release's own interpreter.

    <interpreter with flwr 1.24.0> tests/unit/wire/record_fabs.py 1.24
    <interpreter with flwr 1.41.0> tests/unit/wire/record_fabs.py 1.41

A tree maps paths to texts, or to {"base64": ...}, {"link": target}, {"repeat": [text, times]}. The hash of the FAB is
recorded under the given key, null where stock refuses the tree.
"""

import base64
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "vectors" / "fabs.json"


def plant(tree: dict[str, Any], root: Path) -> None:
    """Write a tree below an existing folder."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_bytes(content.encode())
        elif "link" in content:
            os.symlink(content["link"], path)
        elif "repeat" in content:
            text, times = content["repeat"]
            path.write_bytes(text.encode() * times)
        else:
            path.write_bytes(base64.b64decode(content["base64"]))


def main(release: str) -> None:
    from flwr.cli.build import build_fab_from_disk

    cases = json.loads(VECTORS.read_text())
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            plant(case["tree"], Path(folder))
            try:
                case["hashes"][release] = hashlib.sha256(build_fab_from_disk(Path(folder))).hexdigest()
            except ValueError as error:
                case["hashes"][release] = None
                print(case["name"], "refused:", str(error).splitlines()[0])
    VECTORS.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
