"""What an account may have at once: runs that are not finished, and bytes kept for its runs.

Bytes are those of its runs' FABs and artifacts, and of their messages until they are done with; a model that goes to
many nodes counts once. What an account's own side sends (FABs, instructions, artifacts) is refused before it is stored;
replies of nodes count and are always taken, as the work is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from trellis_superlink.core import trees
from trellis_superlink.core.base import Ground
from trellis_superlink.core.errors import OverQuota
from trellis_superlink.core.letters import MailState
from trellis_superlink.core.principals import Principal
from trellis_superlink.store.tables import artifacts, fabs, messages, objects, runs


@dataclass(frozen=True)
class Limits:
    """For each account; None: as much as there is room for."""

    runs: int | None = None
    bytes: int | None = None


class Quotas:
    def __init__(self, ground: Ground, limits: Limits) -> None:
        self._ground = ground
        self._limits = limits
        # By account. What is used is never less than what is kept and what is coming, and counted anew at the limit.
        self._used: dict[str, int] = {}
        self._coming: dict[str, int] = {}  # taken, and not yet among what is kept

    def check_run(self, conn: Connection, owner: str, fab_hash: str, size: int) -> None:
        """Before a run is added. OverQuota."""
        if self._limits.runs is not None:
            going_on = select(func.count()).where(runs.c.owner_id == owner, runs.c.status != "finished")
            if (count := conn.scalar(going_on) or 0) >= self._limits.runs:
                raise OverQuota(
                    f"Your account has {count} unfinished runs, and may have {self._limits.runs} at once; wait for one "
                    "or stop one."
                )
        has_it = select(runs.c.run_id).where(runs.c.owner_id == owner, runs.c.fab_hash == fab_hash).limit(1)
        if self._limits.bytes is not None and conn.scalar(has_it) is None:
            self.check_bytes(conn, owner, size)

    def check_bytes(self, conn: Connection, owner: str, more: int) -> None:
        """Before so many bytes are kept for the account's runs. OverQuota."""
        limit = self._limits.bytes
        if limit is None:
            return
        used = self._coming.get(owner, 0)  # looked at first: what arrives meanwhile counts twice rather than never
        used += kept(conn, owner)
        self._used[owner] = used + more
        if used + more > limit:
            raise OverQuota(
                f"The account's runs keep {used:,} bytes on the SuperLink, and may keep {limit:,}: {more:,} more are "
                "refused. Runs that finish give back what their messages took; what they left behind goes with "
                "--retention."
            )

    async def take(self, who: Principal, more: int) -> None:
        """The same for bytes that an executor's run is about to send, until they are `arrived`; costs nothing until the
        limit is near."""
        if self._limits.bytes is None:
            return
        used = self._used.get(who.owner)
        if used is not None and used + more <= self._limits.bytes:
            self._used[who.owner] = used + more
        else:
            await self._ground.db.read(lambda conn: self.check_bytes(conn, who.owner, more))
        self._coming[who.owner] = self._coming.get(who.owner, 0) + more

    def arrived(self, who: Principal, taken: int) -> None:
        """Of what was taken so much is among what is kept now, or given up."""
        left = self._coming.pop(who.owner, 0) - taken
        if left > 0:
            self._coming[who.owner] = left


def kept(conn: Connection, owner: str) -> int:
    """Bytes that are kept for an account's runs now."""
    of_owner = runs.c.owner_id == owner
    own_fabs = select(runs.c.fab_hash).where(of_owner)
    size_of_fabs = select(func.sum(func.length(fabs.c.content))).where(fabs.c.fab_hash.in_(own_fabs))
    size_of_artifacts = select(func.sum(artifacts.c.size)).join(runs, runs.c.run_id == artifacts.c.run_id)
    mail = (
        select(messages.c.message_id, messages.c.content_id, messages.c.size, messages.c.arrival)
        .join(runs, runs.c.run_id == messages.c.run_id)
        .where(of_owner, messages.c.state != int(MailState.FREED))
    )
    contents: dict[str, int] = {}
    coming: list[str] = []
    for row in conn.execute(mail):
        content = row.content_id or row.message_id
        if row.arrival is None:
            coming.append(content)
        contents[content] = max(contents.get(content, 0), row.size)
    return (
        (conn.scalar(size_of_fabs) or 0)
        + (conn.scalar(size_of_artifacts.where(of_owner)) or 0)
        + sum(contents.values())
        + _arrived_below(conn, coming)
    )


def _arrived_below(conn: Connection, roots: list[str]) -> int:
    """Bytes that are here of objects that are not complete."""
    size, seen, level = 0, set(roots), roots
    while level:
        below: list[str] = []
        for batch in trees.batches(level):
            query = select(objects.c.size, objects.c.children).where(objects.c.object_id.in_(batch))
            for row in conn.execute(query):
                size += row.size or 0
                below += [child for child in trees.split(row.children) if child not in seen]
                seen.update(below)
        level = list(dict.fromkeys(below))
    return size
