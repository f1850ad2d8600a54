"""The MetricRecords of replies, kept after the objects they came in are freed."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import bindparam, insert, select
from trellis_wire.objects import ObjectError, Tree
from trellis_wire.records import metric_records

from trellis_superlink.store.database import Tx
from trellis_superlink.store.tables import metrics, objects

_CONTENTS = select(objects.c.object_id, objects.c.content).where(
    objects.c.object_id.in_(bindparam("ids", expanding=True))
)
_KEEP = insert(metrics)


def keep(tx: Tx, reply: Any, tree: Tree, received_at: float) -> None:
    """Reads the metrics of a complete reply (its row and its tree) and stores them. A record too large
    for its row is no record of metrics; what cannot be read is the app's own business and must not cost its reply."""
    ids = [
        id_
        for content in tree.children
        for id_ in (content.object_id, *(record.object_id for record in content.children))
    ]
    contents: dict[str, bytes] = {
        row.object_id: row.content for row in tx.conn.execute(_CONTENTS, {"ids": ids[:500]}) if row.content is not None
    }
    try:
        records = metric_records(tree, contents.get)
    except ObjectError:
        return
    rows = [
        {
            "message_id": reply.message_id,
            "name": name,
            "run_id": reply.run_id,
            "node_id": reply.src_node_id,
            "group_id": reply.group_id,
            "message_type": reply.message_type,
            "received_at": received_at,
            "record": json.dumps(record.items),
        }
        for name, record in records.items()
    ]
    if rows:
        tx.conn.execute(_KEEP, rows)
