"""Files that a run leaves behind: a table and a place for them."""

from __future__ import annotations

import builtins
import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select

from trellis_superlink.core import access
from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import NotFound, RunUnfinished
from trellis_superlink.core.objects import Objects
from trellis_superlink.core.principals import Principal
from trellis_superlink.store.database import Tx
from trellis_superlink.store.files import Incoming
from trellis_superlink.store.tables import artifacts

_PART = 1024 * 1024


@dataclass(frozen=True)
class Artifact:
    run_id: int
    name: str
    size: int
    digest: str  # lowercase hex SHA-256
    created_at: float


class Artifacts:
    def __init__(self, ground: Ground, objects: Objects) -> None:
        self._ground = ground
        self._objects = objects

    async def add(self, who: Principal, name: str, content: Path) -> Artifact:
        """From the executor of a run: the file's bytes are copied and synced before the row is committed. A second one
        of the same name takes the first one's place."""
        run_id = who.run
        digest, size = await self._objects.in_thread(_measure, content)
        file: Incoming = await self._objects.in_thread(self._objects.open_file, digest)
        now = self._ground.clock()

        def put(tx: Tx) -> None:
            this = (artifacts.c.run_id == run_id) & (artifacts.c.name == name)
            older = tx.conn.scalar(select(artifacts.c.location).where(this))
            if older is not None:
                tx.conn.execute(delete(artifacts).where(this))
                tx.afterwards(lambda: self._ground.discard([older]))
            tx.conn.execute(
                insert(artifacts).values(
                    run_id=run_id, name=name, size=size, digest=digest, location=file.location, created_at=now
                )
            )

        async def keep() -> None:
            try:
                await self._objects.in_thread(_copy, content, file)
                await self._ground.db.write(put)
            except BaseException:
                await self._objects.in_thread(file.discard)
                raise

        await self._ground.to_the_end(keep())
        return Artifact(run_id, name, size, digest, now)

    async def list(self, who: Principal, run_id: int) -> builtins.list[Artifact]:
        """By name. NotFound, RunUnfinished while the run goes on."""

        def read(conn: Connection) -> builtins.list[Artifact]:
            if access.run_for(conn, who, run_id).status != "finished":
                raise RunUnfinished("Cannot pull artifacts for an unfinished run")
            rows = conn.execute(select(artifacts).where(artifacts.c.run_id == run_id).order_by(artifacts.c.name))
            return [Artifact(row.run_id, row.name, row.size, row.digest, row.created_at) for row in rows]

        return await self._ground.db.read(read)

    async def read(self, who: Principal, run_id: int, name: str, start: int, length: int) -> memoryview:
        """A range of an artifact's bytes. NotFound."""

        def find(conn: Connection) -> str | None:
            access.run_for(conn, who, run_id)
            return conn.scalar(
                select(artifacts.c.location).where(artifacts.c.run_id == run_id, artifacts.c.name == name)
            )

        location = await self._ground.db.read(find)
        if location is None:
            raise NotFound("The run has no such artifact.")
        return await self._ground.files.read(location, start, length)


def _measure(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _copy(path: Path, file: Incoming) -> None:
    with path.open("rb") as source:
        while part := source.read(_PART):
            file.write(part)
    file.settle()
