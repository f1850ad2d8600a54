"""Which executor works on which run: a token for each claim, of which only the hash is stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import Unauthenticated
from trellis_superlink.core.principals import Principal
from trellis_superlink.store.database import Tx
from trellis_superlink.store.tables import claims, runs


@dataclass(frozen=True)
class Claim:
    token_hash: str
    run_id: int
    executor_id: str
    status: str  # of the run
    federation: str  # of the run
    owner: str  # of the run


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Claims:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._holders: dict[str, Principal] = {}  # by token hash; taken out with the claim

    async def holder(self, token: str) -> Principal:
        """Unauthenticated for an unknown token."""
        digest = hash_of(token)
        holder = self._holders.get(digest)
        if holder is None:
            claim = await self._ground.db.read(lambda conn: self.find(conn, digest))
            if claim is None:
                raise Unauthenticated("The token belongs to no run.")
            holder = Principal.executor(
                claim.executor_id,
                run_id=claim.run_id,
                claim=digest,
                federation=claim.federation,
                owner=claim.owner,
            )
            self._holders[digest] = holder
        return holder

    def find(self, conn: Connection, token_hash: str) -> Claim | None:
        row = conn.execute(_CLAIMS.where(claims.c.token_hash == token_hash)).first()
        return None if row is None else Claim(*row)

    def open(self, conn: Connection, executor_id: str | None = None) -> Sequence[Claim]:
        """The claims of runs that are not finished, of one executor or of all."""
        query = _CLAIMS.where(runs.c.status != "finished")
        if executor_id is not None:
            query = query.where(claims.c.executor_id == executor_id)
        return [Claim(*row) for row in conn.execute(query)]

    def add(self, tx: Tx, run_id: int, executor_id: str) -> str:
        """A new claim; its token, which exists nowhere else."""
        token = secrets.token_urlsafe(32)
        tx.conn.execute(
            insert(claims).values(
                token_hash=hash_of(token), run_id=run_id, executor_id=executor_id, claimed_at=self._ground.clock()
            )
        )
        return token

    def remove(self, tx: Tx, token_hash: str) -> None:
        """The token opens nothing any more."""
        tx.conn.execute(delete(claims).where(claims.c.token_hash == token_hash))
        tx.afterwards(lambda: self.forget(token_hash))

    def forget(self, token_hash: str) -> None:
        self._holders.pop(token_hash, None)


_CLAIMS = select(
    claims.c.token_hash, claims.c.run_id, claims.c.executor_id, runs.c.status, runs.c.federation, runs.c.owner_id
).join(runs, runs.c.run_id == claims.c.run_id)
