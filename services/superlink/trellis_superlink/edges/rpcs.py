"""Each rpc of every Flower release from 1.20 on: since when until when it is, and whether it is served or why not.

The edges take their refusals from here. Names and releases are facts of the published packages (WIRE.md appendix A).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from grpc import StatusCode

from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.versions import Version

CONTROL: Final = "flwr.proto.Control"
EXEC: Final = "flwr.proto.Exec"
FLEET: Final = "flwr.proto.Fleet"
ADAPTER: Final = "flwr.proto.GrpcAdapter"

FIRST: Final[Version] = (1, 20)
"""The first release that is served."""


@dataclass(frozen=True)
class Refusal:
    """The UNIMPLEMENTED that callers get; `code` in Flower's error catalogue, where it has one."""

    text: str
    code: int | None = None

    def error(self) -> EdgeError:
        return EdgeError(StatusCode.UNIMPLEMENTED, self.text, self.code)


@dataclass(frozen=True)
class Rpc:
    """`until`: the last release that has it (None: still there). `over_grpc`: whether its gRPC service has it.
    `refusal`: None where it is served."""

    since: Version = FIRST
    until: Version | None = None
    refusal: Refusal | None = None
    over_grpc: bool = True


_ICONS = Refusal("This SuperLink keeps no icons.")
SIMULATIONS: Final = Refusal("This SuperLink runs real federations only, no simulations.")
_SERIES = Refusal("Each run is a series of its own here and is called after its app.")
_AUTOMATIONS = Refusal("This SuperLink has no automations.")
_CONNECTORS = Refusal("This SuperLink has no connectors.")
_CATALOGUE = Refusal("This SuperLink keeps no catalogue of apps; give `flwr run` the app's directory.")
NO_LOGIN: Final = Refusal("ControlServicer initialized without account authentication", 19)
"""What the rpcs of login answer on a SuperLink without it."""
_APP_PROCESSES = Refusal(
    "This SuperLink is Trellis's and works with Trellis's executor, not with flower-superexec and Flower's own "
    "flwr-serverapp: run the program trellis-serverapp (image trellis/serverapp) with --serverappio-api-address "
    "pointing here. Flower Apps run on it unchanged."
)
_BIDIRECTIONAL = Refusal(
    "This SuperLink serves SuperNodes, not clients of the start_client kind; run flower-supernode."
)

_RUNS = ("StartRun", "StopRun", "StreamLogs", "ListRuns", "GetLoginDetails", "GetAuthTokens")


def _since(minor: int, *names: str, until: Version | None = None, refusal: Refusal | None = None) -> dict[str, Rpc]:
    return dict.fromkeys(names, Rpc((1, minor), until, refusal))


RPCS: Final[Mapping[str, Mapping[str, Rpc]]] = {
    EXEC: _since(20, *_RUNS, until=(1, 20)),
    CONTROL: {
        **_since(21, *_RUNS),
        **_since(22, "PullArtifacts"),
        **_since(23, "RegisterNode", "UnregisterNode", "ListNodes"),
        **_since(24, "ListFederations", "ShowFederation"),
        **_since(27, "CreateFederation", "ArchiveFederation"),
        **_since(27, "AddNodeToFederation", "RemoveNodeFromFederation"),
        **_since(27, "CreateInvitation", "ListInvitations", "AcceptInvitation"),
        **_since(27, "RejectInvitation", "RevokeInvitation"),
        **_since(28, "RemoveAccountFromFederation"),
        **_since(28, "ConfigureSimulationFederation", refusal=SIMULATIONS),
        **_since(28, "StreamRunEvents"),
        **_since(31, "ListRunSeries", "GetRunSeries"),
        **_since(33, "StartAutomation", "ListAutomations", "StopAutomation", refusal=_AUTOMATIONS),
        **_since(33, "ListConnectors", "DisconnectConnector", refusal=_CONNECTORS),
        **_since(33, "BeginConnectorOAuth", "CompleteConnectorOAuth", refusal=_CONNECTORS),
        **_since(34, "ListApps", refusal=_CATALOGUE),
        **_since(34, "StoreApp", "DeleteApp", until=(1, 34), refusal=_CATALOGUE),
        **_since(35, "AddApp", "RemoveApp", refusal=_CATALOGUE),
        "RefreshAuthTokens": Rpc((1, 36), over_grpc=False),
        **_since(37, "UpdateRunSeriesDescription", refusal=_SERIES),
        **_since(37, "ListRunSeriesEvents"),
        **_since(38, "ListAppAssociations", refusal=_CATALOGUE),
        **_since(40, "SetFederationIcon", refusal=_ICONS),
    },
    FLEET: {
        **_since(20, "CreateNode", "DeleteNode", until=(1, 22)),
        **_since(20, "SendNodeHeartbeat", "PullMessages", "PushMessages", "GetRun", "GetFab"),
        **_since(20, "PushObject", "PullObject", "ConfirmMessageReceived"),
        **_since(23, "RegisterNode", "ActivateNode", "DeactivateNode", "UnregisterNode"),
    },
    ADAPTER: _since(20, "SendReceive"),
}
"""By service and method."""

REFUSED_SERVICES: Final[Mapping[str, Refusal]] = {
    **{f"flwr.proto.{name}": _APP_PROCESSES for name in ("ServerAppIo", "ClientAppIo", "SimulationIo", "Runtime")},
    "flwr.proto.FlowerService": _BIDIRECTIONAL,
}
"""Services that are refused whole, whatever the rpc."""

_TOO_OLD = Refusal("This SuperLink serves SuperNodes of Flower 1.20 and later.")


def refusal(service: str, method: str) -> EdgeError:
    """What a caller is told of an rpc that is not served, known or not."""
    known = RPCS.get(service, {}).get(method)
    if known is not None and known.refusal is not None:
        return known.refusal.error()
    if service in REFUSED_SERVICES:
        return REFUSED_SERVICES[service].error()
    if (service, method) == (FLEET, "Ping"):  # Flower 1.18
        return _TOO_OLD.error()
    return Refusal(f"{service} has no method {method!r}.").error()
