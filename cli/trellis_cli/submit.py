"""What is sent to start a run: the app as a FAB, and the values given for this run."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trellis_wire import fab
from trellis_wire.config import Config, ConfigError, fuse, parse_config_args, to_edge
from trellis_wire.pb.edge import control_pb2 as pb
from trellis_wire.pb.edge.run_pb2 import Fab

from trellis_cli.components import problem
from trellis_cli.errors import UsageError


@dataclass(frozen=True)
class Submission:
    """An app that is ready to be sent. An app of Flower Hub has no content here: the SuperLink fetches it."""

    app: Path
    spec: str
    info: fab.FabInfo | None
    content: bytes
    overrides: Config
    signatures: Mapping[str, str]

    def request(self, federation: str) -> pb.StartRunRequest:
        return pb.StartRunRequest(
            fab=Fab(
                hash_str=self.info.fab_hash if self.info else "", content=self.content, verifications=self.signatures
            ),
            override_config=to_edge(self.overrides),
            app_spec=self.spec,
            federation=federation,
        )

    def describe(self, response: pb.StartRunResponse) -> dict[str, Any]:
        """The document of `run --format json` (the keys of Flower 1.36)."""
        document: dict[str, Any] = {
            "success": True,
            "run-id": str(response.run_id),
            "federation-id": response.federation,
        }
        if response.note:
            document["note"] = response.note
        if self.info is not None:
            document |= {
                "fab-id": self.info.fab_id,
                "fab-name": self.info.name,
                "fab-version": self.info.version,
                "fab-hash": self.info.fab_hash[:8],
                "fab-filename": self.info.filename,
            }
        return document


def prepare(app: str, run_config: Sequence[str], signing_key: Path | None = None) -> Submission:
    """Build (or read) the FAB, sign it where there is a key, and parse the overrides. UsageError says what is wrong."""
    try:
        overrides = parse_config_args(run_config)
    except ConfigError as error:
        raise UsageError(f"--run-config: {error}") from error
    if app.startswith("@"):
        return Submission(Path(), app, None, b"", overrides, {})
    path = Path(app).expanduser().resolve()
    content = read(path)
    try:
        info = fab.inspect(content)
        fuse(info.config, overrides)
    except fab.FabError as error:
        raise UsageError(f"{path} cannot be sent: {error}") from error
    except ConfigError as error:
        raise UsageError(f"--run-config: {error}") from error
    if (wrong := problem(content, info)) is not None:
        raise UsageError(f"{path} cannot be sent: {wrong}")
    signatures = kept_signatures(path) | ({} if signing_key is None else signature(info.fab_hash, signing_key))
    return Submission(path, "", info, content, overrides, signatures)


def signature(fab_hash: str, key: Path) -> dict[str, str]:
    """The FAB signed now with an Ed25519 key. UsageError."""
    from trellis_wire.signing import SigningProblem, read_private, sign

    try:
        return sign(fab_hash, read_private(key.expanduser()), int(time.time()))
    except SigningProblem as error:
        raise UsageError(f"{error}.") from error


def signature_file(fab_file: Path) -> Path:
    """Where the signatures of a FAB file are: beside it."""
    return fab_file.with_name(fab_file.name + ".sig")


def kept_signatures(app: Path) -> dict[str, str]:
    """The signatures beside a FAB file; none for a folder. UsageError."""
    file = signature_file(app)
    if not app.is_file() or not file.exists():
        return {}
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"The signatures {file} cannot be read: {error}.") from error
    if not isinstance(told, dict) or not all(isinstance(entry, str) for entry in told.values()):
        raise UsageError(f"{file} holds no signatures; `build --sign KEY` writes them.")
    return told


def read(path: Path, fab_format: fab.FabFormat = "1.41") -> bytes:
    """The FAB of an app's folder, or of a .fab file. UsageError where it is neither."""
    if path.is_file():
        return path.read_bytes()
    if not path.exists():
        raise UsageError(f"There is no {path}; name the folder of an app, or a .fab file.")
    if not (path / "pyproject.toml").is_file():
        raise UsageError(f"{path} is no Flower App: it has no pyproject.toml (`trellis new` writes one to begin with).")
    try:
        return fab.build(path, format=fab_format)
    except fab.FabError as error:
        raise UsageError(f"{path} cannot be packed: {error}") from error
