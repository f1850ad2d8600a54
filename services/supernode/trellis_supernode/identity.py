"""The node's key: who it is to the SuperLink, the same for as long as the state directory lives."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from trellis_kit.lifecycle import Fatal
from trellis_wire.identity import KeyProblem, generate_key, load_private_key, private_pem

from trellis_supernode.objects import sync_folder


def node_key(given: Path | None, state_dir: Path) -> ec.EllipticCurvePrivateKey:
    """The operator's key, or this node's own: P-256, made once, kept as `node.key` for its owner only. Fatal."""
    path = state_dir / "node.key"
    try:
        if given is not None or path.exists():
            return load_private_key(given or path)
    except KeyProblem as error:
        raise Fatal(str(error)) from error
    key = generate_key("P-256")
    temporary = path.with_suffix(".part")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(private_pem(key))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(state_dir)
    return key
