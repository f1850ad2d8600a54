"""The SuperLink's tables. Times are Unix seconds; ids of objects and messages are lowercase hex SHA-256."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

from trellis_superlink.store.types import Id64

metadata = MetaData()

# One key, one node: the key of an unregistered node is free again.
nodes = Table(
    "nodes",
    metadata,
    Column("node_id", Id64, primary_key=True, autoincrement=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("self_registered", Boolean, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("owner_name", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("registered_at", Double, nullable=False),
    Column("activated_at", Double),
    Column("deactivated_at", Double),
    Column("unregistered_at", Double),
    Column("online_until", Double),
    Column("heartbeat_interval", Double, nullable=False),
)
Index(
    "nodes_by_key",
    nodes.c.public_key,
    unique=True,
    sqlite_where=text("unregistered_at IS NULL"),
    postgresql_where=text("unregistered_at IS NULL"),
)

fabs = Table(
    "fabs",
    metadata,
    Column("fab_hash", String(64), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Id64, primary_key=True, autoincrement=False),
    Column("fab_id", Text, nullable=False),
    Column("fab_version", Text, nullable=False),
    Column("fab_hash", String(64), nullable=False, index=True),
    Column("override_config", Text, nullable=False),  # JSON, bytes as {"base64": ...}
    Column("signatures", Text),  # JSON object: a key's name -> what it signed, for who looks at signatures
    Column("federation", Text, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("owner_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("pending_at", Double, nullable=False, index=True),
    Column("starting_at", Double),
    Column("running_at", Double),
    Column("finished_at", Double, index=True),
    Column("bytes_sent", BigInteger, nullable=False),
    Column("bytes_received", BigInteger, nullable=False),
    Column("clientapp_runtime", Double, nullable=False),
)
Index("runs_by_status", runs.c.status, runs.c.pending_at)

run_history = Table(
    "run_history",
    metadata,
    Column("entry", Integer, primary_key=True),
    Column("run_id", Id64, nullable=False, index=True),
    Column("at", Double, nullable=False),
    Column("status", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("details", Text, nullable=False),
)

# Who may speak for a run: the token itself is known to its executor only. Kept until the run is pruned, so that a
# late caller hears that the run is over rather than that it is nobody.
claims = Table(
    "claims",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("run_id", Id64, nullable=False, index=True),
    Column("executor_id", Text, nullable=False),
    Column("claimed_at", Double, nullable=False),
)

# `refs` counts the distinct objects that have this one as a child, and the messages and contexts whose root it is.
# `size` is null until the content is here: in the row when small, else in the file `location`.
objects = Table(
    "objects",
    metadata,
    Column("object_id", String(64), primary_key=True),
    Column("children", Text, nullable=False),  # ids joined by commas
    Column("refs", Integer, nullable=False),
    Column("size", BigInteger),
    Column("content", LargeBinary),
    Column("location", Text),
)

# Objects still to come. `top_id` is a message's own object or the root of its content, which many messages share.
awaited = Table(
    "awaited",
    metadata,
    Column("object_id", String(64), nullable=False),
    Column("top_id", String(64), nullable=False, index=True),
    PrimaryKeyConstraint("object_id", "top_id"),
)

# Instructions (`reply_to` null) and replies. `arrival` is null until all objects are here; replies of a run are
# numbered in order of arrival. `state`: see core.letters.MailState.
messages = Table(
    "messages",
    metadata,
    Column("message_id", String(64), primary_key=True),
    Column("run_id", Id64, nullable=False),
    Column("src_node_id", Id64, nullable=False),
    Column("dst_node_id", Id64, nullable=False),
    Column("reply_to", String(64)),
    Column("group_id", Text, nullable=False),
    Column("ttl", Double, nullable=False),
    Column("message_type", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("src_task_id", Id64),
    Column("dst_task_id", Id64),
    Column("error_code", BigInteger),
    Column("error_reason", Text),
    Column("content_id", String(64), index=True),
    Column("state", Integer, nullable=False),
    Column("arrival", Integer),
    Column("deliveries", Integer, nullable=False),
    Column("pushed_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes of all its objects, once they are here
    Column("runtime", Double),  # seconds the ClientApp took; replies
)
Index("messages_by_receiver", messages.c.dst_node_id, messages.c.state)
Index("messages_by_arrival", messages.c.run_id, messages.c.arrival)
Index("messages_by_state", messages.c.state, messages.c.expires_at)
Index(
    "messages_one_reply",
    messages.c.reply_to,
    unique=True,
    sqlite_where=text("reply_to IS NOT NULL"),
    postgresql_where=text("reply_to IS NOT NULL"),
)

# The MetricRecords of replies outlive the objects they came in.
metrics = Table(
    "metrics",
    metadata,
    Column("message_id", String(64), nullable=False),
    Column("name", Text, nullable=False),  # the record's key in the reply
    Column("run_id", Id64, nullable=False, index=True),
    Column("node_id", Id64, nullable=False),
    Column("group_id", Text, nullable=False),
    Column("message_type", Text, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("record", Text, nullable=False),  # JSON object: key -> number or list of numbers
    PrimaryKeyConstraint("message_id", "name"),
)

contexts = Table(
    "contexts",
    metadata,
    Column("run_id", Id64, primary_key=True, autoincrement=False),
    Column("root_id", String(64), nullable=False),
)

logs = Table(
    "logs",
    metadata,
    Column("run_id", Id64, nullable=False),
    Column("at", Double, nullable=False),
    Column("level", Text, nullable=False),
    Column("text", Text, nullable=False),
    PrimaryKeyConstraint("run_id", "at"),
)

log_cursors = Table(
    "log_cursors",
    metadata,
    Column("claim", String(64), primary_key=True),
    Column("run_id", Id64, nullable=False, index=True),
    Column("sequence", BigInteger, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("run_id", Id64, nullable=False),
    Column("name", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("location", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    PrimaryKeyConstraint("run_id", "name"),
)

# The default federation has no rows here: see core.federations. Members are known by the login provider's account ids.
federations = Table(
    "federations",
    metadata,
    Column("name", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("archived_at", Double),
)

federation_members = Table(
    "federation_members",
    metadata,
    Column("federation", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("account_name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("since", Double, nullable=False),
    PrimaryKeyConstraint("federation", "account_id"),
)

federation_nodes = Table(
    "federation_nodes",
    metadata,
    Column("federation", Text, nullable=False),
    Column("node_id", Id64, nullable=False),
    PrimaryKeyConstraint("federation", "node_id"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("entry", Integer, primary_key=True),
    Column("federation", Text, nullable=False),
    Column("inviter_id", Text, nullable=False),
    Column("inviter_name", Text, nullable=False),
    Column("invitee_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
)
Index("invitations_by_invitee", invitations.c.invitee_name)
Index("invitations_by_inviter", invitations.c.inviter_id)

# Keys that a SuperLink makes for itself once, and every replica of it uses.
keys = Table(
    "keys",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

# When this SuperLink last wrote a batch of heartbeats: what was online then gets time to come back after a restart.
beats = Table(
    "beats",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
)
