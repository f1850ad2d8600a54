"""The SuperNode's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """One registry per process; names begin with trellis_supernode_."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        prefix = "trellis_supernode"
        self.instructions = Counter(
            f"{prefix}_instructions", "Instructions taken from the SuperLink", registry=registry
        )
        self.replies = Counter(f"{prefix}_replies", "Replies of executors taken and kept", registry=registry)
        self.bytes_in = Counter(f"{prefix}_received_bytes", "Bytes of large objects received", registry=registry)
        self.bytes_out = Counter(f"{prefix}_sent_bytes", "Bytes of large objects sent", registry=registry)
        self.tasks = Gauge(f"{prefix}_tasks", "Instructions without a reply", registry=registry)
        self.executors = Gauge(f"{prefix}_executors", "Executors that attend", registry=registry)
        self.undelivered = Gauge(f"{prefix}_undelivered_replies", "Replies on their way out", registry=registry)
        self.joined = Gauge(f"{prefix}_joined", "1 while the node is a member of the SuperLink", registry=registry)
