"""What a run leaves in its working folder, kept with the run: one ZIP file, for `flwr pull`."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, Final

import grpc
from trellis_runner.attendance import persist
from trellis_runner.transfer import PART
from trellis_wire.pb.appio import appio_pb2

_log = logging.getLogger(__name__)

NAME: Final = "run-{run_id}.zip"

_SKIPPED: Final = frozenset({"__pycache__"})


def files_below(folder: Path) -> Iterator[Path]:
    """The regular files, links left out: where they lead is not the run's."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _pack(folder: Path, paths: list[Path], file: IO[bytes]) -> int:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in paths:
            archive.write(path, path.relative_to(folder))
    return file.tell()


async def push(stub: Any, metadata: tuple[tuple[str, str], ...], run_id: int, folder: Path) -> str | None:
    """Sends what lies in the folder, if anything does; a line for the run's log about it."""
    paths = await asyncio.to_thread(lambda: list(files_below(folder)))
    if not paths:
        return None
    with tempfile.TemporaryFile(dir=folder.parent) as file:
        size = await asyncio.to_thread(_pack, folder, paths, file)

        async def parts() -> AsyncIterator[appio_pb2.ArtifactPart]:
            file.seek(0)
            while data := await asyncio.to_thread(file.read, PART):
                yield appio_pb2.ArtifactPart(name=NAME.format(run_id=run_id), data=data)

        try:
            await persist(lambda: stub.PushArtifact(parts(), metadata=metadata))
        except grpc.aio.AioRpcError as error:
            _log.warning("What the run left behind could not be kept: %s", error.details())
            return f"The {len(paths)} file(s) that the run left behind could not be kept: {error.details()}"
    _log.info("Kept what the run left behind", extra={"files": len(paths), "bytes": size})
    return f"The run left {len(paths)} file(s) behind, {size:,} bytes: trellis pull {run_id}, or flwr pull {run_id}"
