"""Who may see which run."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from trellis_superlink.core.errors import NotFound
from trellis_superlink.core.permissions import Permission
from trellis_superlink.core.principals import Kind, Principal
from trellis_superlink.store.tables import messages, runs


def run_for(conn: Connection, who: Principal, run_id: int, beyond: Permission = Permission.ALL_RUNS_SEE) -> Any:
    """The run's row. NotFound when there is none that the caller may see: an account its own, or any with the
    permission `beyond`, an executor the one it holds, a node those it got messages of."""
    row = conn.execute(select(runs).where(runs.c.run_id == run_id)).first()
    if row is None or not _may_see(conn, who, row, beyond):
        raise NotFound("Run ID not found")
    return row


def _may_see(conn: Connection, who: Principal, run: Any, beyond: Permission) -> bool:
    match who.kind:
        case Kind.SYSTEM:
            return True
        case Kind.ACCOUNT:
            return bool(run.owner_id == who.id) or beyond in who.may
        case Kind.EXECUTOR:
            return bool(run.run_id == who.run_id)
        case Kind.NODE:
            return (
                conn.scalar(
                    select(messages.c.message_id)
                    .where(messages.c.dst_node_id == who.node_id, messages.c.run_id == run.run_id)
                    .limit(1)
                )
                is not None
            )
