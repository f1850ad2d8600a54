"""The first handful of figures: runs by state, nodes online, messages, bytes, held calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """All metrics of one SuperLink, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        labels = ("surface", "method")
        self._calls = Counter("trellis_calls", "Calls that ended", (*labels, "status"), registry=self.registry)
        self._bytes = Counter(
            "trellis_call_bytes", "Bytes of messages in calls", ("surface", "direction"), registry=self.registry
        )
        self._held = Gauge("trellis_held_calls", "Calls that wait for news", ("surface",), registry=self.registry)
        self._messages = Counter("trellis_messages", "Messages that passed", ("kind",), registry=self.registry)
        self.runs = Gauge("trellis_runs", "Runs by state", ("status",), registry=self.registry)
        self.nodes_online = Gauge("trellis_nodes_online", "Nodes online", registry=self.registry)
        self.executors = Gauge("trellis_executors", "Executors of ServerApps that attend", registry=self.registry)

    def call(self, surface: str, method: str, status: str, received: int, sent: int) -> None:
        """A call ended, having carried so many bytes of messages."""
        self._calls.labels(surface, method, status).inc()
        if received:
            self._bytes.labels(surface, "received").inc(received)
        if sent:
            self._bytes.labels(surface, "sent").inc(sent)

    def messages(self, kind: str, count: int) -> None:
        """So many messages passed; `kind` is instruction_in, instruction_out, reply_in or reply_out."""
        if count:
            self._messages.labels(kind).inc(count)

    @contextlib.contextmanager
    def held(self, surface: str) -> Iterator[None]:
        """A call is held for as long as the body runs."""
        gauge = self._held.labels(surface)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()
