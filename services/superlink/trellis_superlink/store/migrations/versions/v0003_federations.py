"""Federations of accounts and nodes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from trellis_superlink.store.types import Id64

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "federations",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("archived_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "federation_members",
        sa.Column("federation", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("account_name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("federation", "account_id"),
    )
    op.create_table(
        "federation_nodes",
        sa.Column("federation", sa.Text(), nullable=False),
        sa.Column("node_id", Id64(), nullable=False),
        sa.PrimaryKeyConstraint("federation", "node_id"),
    )
    op.create_table(
        "invitations",
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("federation", sa.Text(), nullable=False),
        sa.Column("inviter_id", sa.Text(), nullable=False),
        sa.Column("inviter_name", sa.Text(), nullable=False),
        sa.Column("invitee_name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("entry"),
    )
    op.create_index("invitations_by_invitee", "invitations", ["invitee_name"])
    op.create_index("invitations_by_inviter", "invitations", ["inviter_id"])
