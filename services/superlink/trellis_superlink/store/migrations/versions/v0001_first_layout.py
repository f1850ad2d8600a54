"""The first layout"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from trellis_superlink.store.types import Id64

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("run_id", Id64(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "name"),
    )
    op.create_table(
        "awaited",
        sa.Column("object_id", sa.String(length=64), nullable=False),
        sa.Column("top_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("object_id", "top_id"),
    )
    op.create_index(op.f("ix_awaited_top_id"), "awaited", ["top_id"], unique=False)
    op.create_table(
        "beats",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "claims",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("run_id", Id64(), nullable=False),
        sa.Column("executor_id", sa.Text(), nullable=False),
        sa.Column("claimed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    op.create_index(op.f("ix_claims_run_id"), "claims", ["run_id"], unique=False)
    op.create_table(
        "contexts",
        sa.Column("run_id", Id64(), autoincrement=False, nullable=False),
        sa.Column("root_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "fabs",
        sa.Column("fab_hash", sa.String(length=64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fab_hash"),
    )
    op.create_table(
        "log_cursors",
        sa.Column("claim", sa.String(length=64), nullable=False),
        sa.Column("run_id", Id64(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("claim"),
    )
    op.create_index(op.f("ix_log_cursors_run_id"), "log_cursors", ["run_id"], unique=False)
    op.create_table(
        "logs",
        sa.Column("run_id", Id64(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "at"),
    )
    op.create_table(
        "messages",
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", Id64(), nullable=False),
        sa.Column("src_node_id", Id64(), nullable=False),
        sa.Column("dst_node_id", Id64(), nullable=False),
        sa.Column("reply_to", sa.String(length=64), nullable=True),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("ttl", sa.Double(), nullable=False),
        sa.Column("message_type", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("src_task_id", Id64(), nullable=True),
        sa.Column("dst_task_id", Id64(), nullable=True),
        sa.Column("error_code", sa.BigInteger(), nullable=True),
        sa.Column("error_reason", sa.Text(), nullable=True),
        sa.Column("content_id", sa.String(length=64), nullable=True),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("arrival", sa.Integer(), nullable=True),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("pushed_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("runtime", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("message_id"),
    )
    op.create_index(op.f("ix_messages_content_id"), "messages", ["content_id"], unique=False)
    op.create_index("messages_by_arrival", "messages", ["run_id", "arrival"], unique=False)
    op.create_index("messages_by_receiver", "messages", ["dst_node_id", "state"], unique=False)
    op.create_index("messages_by_state", "messages", ["state", "expires_at"], unique=False)
    op.create_index(
        "messages_one_reply",
        "messages",
        ["reply_to"],
        unique=True,
        sqlite_where=sa.text("reply_to IS NOT NULL"),
        postgresql_where=sa.text("reply_to IS NOT NULL"),
    )
    op.create_table(
        "metrics",
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("run_id", Id64(), nullable=False),
        sa.Column("node_id", Id64(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("message_type", sa.Text(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("message_id", "name"),
    )
    op.create_index(op.f("ix_metrics_run_id"), "metrics", ["run_id"], unique=False)
    op.create_table(
        "nodes",
        sa.Column("node_id", Id64(), autoincrement=False, nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("self_registered", sa.Boolean(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("owner_name", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("registered_at", sa.Double(), nullable=False),
        sa.Column("activated_at", sa.Double(), nullable=True),
        sa.Column("deactivated_at", sa.Double(), nullable=True),
        sa.Column("unregistered_at", sa.Double(), nullable=True),
        sa.Column("online_until", sa.Double(), nullable=True),
        sa.Column("heartbeat_interval", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("node_id"),
    )
    op.create_index(
        "nodes_by_key",
        "nodes",
        ["public_key"],
        unique=True,
        sqlite_where=sa.text("unregistered_at IS NULL"),
        postgresql_where=sa.text("unregistered_at IS NULL"),
    )
    op.create_table(
        "objects",
        sa.Column("object_id", sa.String(length=64), nullable=False),
        sa.Column("children", sa.Text(), nullable=False),
        sa.Column("refs", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.Column("location", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("object_id"),
    )
    op.create_table(
        "run_history",
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("run_id", Id64(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("entry"),
    )
    op.create_index(op.f("ix_run_history_run_id"), "run_history", ["run_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("run_id", Id64(), autoincrement=False, nullable=False),
        sa.Column("fab_id", sa.Text(), nullable=False),
        sa.Column("fab_version", sa.Text(), nullable=False),
        sa.Column("fab_hash", sa.String(length=64), nullable=False),
        sa.Column("override_config", sa.Text(), nullable=False),
        sa.Column("federation", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("owner_name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("pending_at", sa.Double(), nullable=False),
        sa.Column("starting_at", sa.Double(), nullable=True),
        sa.Column("running_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.Column("bytes_received", sa.BigInteger(), nullable=False),
        sa.Column("clientapp_runtime", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index(op.f("ix_runs_fab_hash"), "runs", ["fab_hash"], unique=False)
    op.create_index(op.f("ix_runs_finished_at"), "runs", ["finished_at"], unique=False)
    op.create_index(op.f("ix_runs_pending_at"), "runs", ["pending_at"], unique=False)
    op.create_index("runs_by_status", "runs", ["status", "pending_at"], unique=False)
