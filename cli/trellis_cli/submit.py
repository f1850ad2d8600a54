"""What is sent to start a run: the app as a FAB, and the values given for this run."""

from collections.abc import Sequence
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

    def request(self, federation: str) -> pb.StartRunRequest:
        return pb.StartRunRequest(
            fab=Fab(hash_str=self.info.fab_hash if self.info else "", content=self.content),
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


def prepare(app: str, run_config: Sequence[str]) -> Submission:
    """Build (or read) the FAB and parse the overrides. UsageError says what is wrong with either."""
    try:
        overrides = parse_config_args(run_config)
    except ConfigError as error:
        raise UsageError(f"--run-config: {error}") from error
    if app.startswith("@"):
        return Submission(Path(), app, None, b"", overrides)
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
    return Submission(path, "", info, content, overrides)


def read(path: Path, fab_format: fab.FabFormat = "1.41") -> bytes:
    """The FAB of an app's folder, or of a .fab file. UsageError where it is neither."""
    if path.is_file():
        return path.read_bytes()
    if not path.exists():
        raise UsageError(f"There is no {path}.")
    if not (path / "pyproject.toml").is_file():
        raise UsageError(f"{path} is no Flower App: it has no pyproject.toml (`trellis new` writes one to begin with).")
    try:
        return fab.build(path, format=fab_format)
    except fab.FabError as error:
        raise UsageError(f"{path} cannot be packed: {error}") from error
