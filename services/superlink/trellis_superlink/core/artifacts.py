"""Files that a run leaves behind: a table and a place for them."""

from __future__ import annotations

import builtins
import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, insert, select

from trellis_superlink.core import access
from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import NotFound, Refused, RunUnfinished
from trellis_superlink.core.letters import run_going_on
from trellis_superlink.core.objects import Objects
from trellis_superlink.core.principals import Principal
from trellis_superlink.store.database import Tx
from trellis_superlink.store.files import Incoming
from trellis_superlink.store.tables import artifacts


@dataclass(frozen=True)
class Artifact:
    run_id: int
    name: str
    size: int
    digest: str  # lowercase hex SHA-256
    created_at: float


class Artifacts:
    def __init__(self, ground: Ground, objects: Objects, limit: int) -> None:
        """`limit`: bytes of one artifact."""
        self._ground = ground
        self._objects = objects
        self._limit = limit

    async def store(self, who: Principal, name: str, parts: AsyncIterator[bytes]) -> Artifact:
        """From the executor of a run: its bytes are synced before the row is committed. A second artifact of the same
        name takes the first one's place. Refused when it is larger than allowed; RunOver."""
        run_id = who.run
        await self._ground.db.read(lambda conn: run_going_on(conn, run_id))
        file: Incoming = await self._objects.in_thread(self._objects.open_file, secrets.token_hex(32))
        digest, size, taken = hashlib.sha256(), 0, 0
        try:
            async for part in parts:
                size += len(part)
                if size > self._limit:
                    raise Refused(f"A run may leave {self._limit:,} bytes of files (--artifact-limit).")
                await self._objects.quotas.take(who, len(part))
                taken += len(part)
                digest.update(part)
                await self._objects.in_thread(file.write, part)
        except BaseException:
            await self._objects.in_thread(file.discard)
            raise
        finally:
            self._objects.quotas.arrived(who, taken)  # from here on it counts once more, exactly
        artifact = Artifact(run_id, name, size, digest.hexdigest(), self._ground.clock())
        await self._ground.to_the_end(self._settle(who, artifact, file))
        return artifact

    async def _settle(self, who: Principal, artifact: Artifact, file: Incoming) -> None:
        def put(tx: Tx) -> None:
            run_going_on(tx.conn, artifact.run_id)
            this = (artifacts.c.run_id == artifact.run_id) & (artifacts.c.name == artifact.name)
            older = tx.conn.scalar(select(artifacts.c.location).where(this))
            if older is not None:
                tx.conn.execute(delete(artifacts).where(this))
            self._objects.quotas.check_bytes(tx.conn, who.owner, artifact.size)
            if older is not None:
                tx.afterwards(lambda: self._ground.discard([older]))
            tx.conn.execute(insert(artifacts).values(location=file.location, **asdict(artifact)))

        try:
            await self._objects.in_thread(file.settle)
            await self._ground.db.write(put)
        except BaseException:
            await self._objects.in_thread(file.discard)
            raise

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
