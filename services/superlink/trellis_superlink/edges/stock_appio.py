"""Flower's own app processes meet a sentence that names ours: the interior protocol is not theirs."""

from __future__ import annotations

from grpc import StatusCode

from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.rpc import Service

_SERVICES = ("ServerAppIo", "ClientAppIo", "SimulationIo", "Runtime")

SENTENCE = (
    "This SuperLink is Trellis's and works with Trellis's executor, not with flower-superexec and Flower's own "
    "flwr-serverapp: run the program trellis-serverapp (image trellis/serverapp) with --serverappio-api-address "
    "pointing here. Flower Apps run on it unchanged."
)


def services() -> tuple[Service, ...]:
    """ServerAppIo and Runtime (1.34-1.36) with all their methods, and what else a stock process may ask here."""

    def unserved(_method: str) -> EdgeError:
        return EdgeError(StatusCode.UNIMPLEMENTED, SENTENCE)

    return tuple(Service(f"flwr.proto.{name}", "stock_appio", {}, unserved) for name in _SERVICES)
