"""Which permission each rpc asks for: all rpcs of all edges, each once. One that is missing is refused to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trellis_superlink.core.permissions import Permission

_CONTROL: Final[Mapping[str, Permission]] = {
    "GetLoginDetails": Permission.LOGIN,
    "GetAuthTokens": Permission.LOGIN,
    "RefreshAuthTokens": Permission.LOGIN,
    "StartRun": Permission.RUNS_START,
    "StopRun": Permission.RUNS_STOP,
    "ListRuns": Permission.RUNS_SEE,
    "StreamLogs": Permission.RUNS_SEE,
    "StreamRunEvents": Permission.RUNS_SEE,
    "PullArtifacts": Permission.RUNS_SEE,
    "ListRunSeries": Permission.RUNS_SEE,
    "GetRunSeries": Permission.RUNS_SEE,
    "ListRunSeriesEvents": Permission.RUNS_SEE,
    "UpdateRunSeriesDescription": Permission.RUNS_START,
    "RegisterNode": Permission.NODES_MANAGE,
    "UnregisterNode": Permission.NODES_MANAGE,
    "ListNodes": Permission.NODES_SEE,
    "ListFederations": Permission.FEDERATIONS_SEE,
    "ShowFederation": Permission.FEDERATIONS_SEE,
    "ListInvitations": Permission.FEDERATIONS_SEE,
    "AcceptInvitation": Permission.FEDERATIONS_SEE,
    "RejectInvitation": Permission.FEDERATIONS_SEE,
    "RemoveAccountFromFederation": Permission.FEDERATIONS_SEE,  # to leave; the core asks for more to remove others
    "CreateFederation": Permission.FEDERATIONS_MANAGE,
    "ArchiveFederation": Permission.FEDERATIONS_MANAGE,
    "AddNodeToFederation": Permission.FEDERATIONS_MANAGE,
    "RemoveNodeFromFederation": Permission.FEDERATIONS_MANAGE,
    "CreateInvitation": Permission.FEDERATIONS_MANAGE,
    "RevokeInvitation": Permission.FEDERATIONS_MANAGE,
    "SetFederationIcon": Permission.FEDERATIONS_MANAGE,
    "ConfigureSimulationFederation": Permission.FEDERATIONS_MANAGE,
    **dict.fromkeys(("StartAutomation", "StopAutomation"), Permission.RUNS_START),
    "ListAutomations": Permission.RUNS_SEE,
    **dict.fromkeys(
        ("ListConnectors", "DisconnectConnector", "BeginConnectorOAuth", "CompleteConnectorOAuth"),
        Permission.RUNS_START,
    ),
    **dict.fromkeys(
        ("ListApps", "AddApp", "RemoveApp", "StoreApp", "DeleteApp", "ListAppAssociations"), Permission.RUNS_START
    ),
}

_EXEC: Final = {
    name: _CONTROL[name]
    for name in ("StartRun", "StopRun", "StreamLogs", "ListRuns", "GetLoginDetails", "GetAuthTokens")
}

_FLEET: Final = dict.fromkeys(
    (
        *("CreateNode", "DeleteNode", "RegisterNode", "ActivateNode", "DeactivateNode", "UnregisterNode"),
        *("SendNodeHeartbeat", "PullMessages", "PushMessages", "ConfirmMessageReceived"),
        *("GetRun", "GetFab", "PushObject", "PullObject"),
    ),
    Permission.NODE,
)

_SERVERAPPIO: Final = {
    "Attend": Permission.EXECUTOR,
    **dict.fromkeys(
        (
            *("GetFab", "StartRunning", "GetNodes", "PushMessages", "PushObjects", "StreamReplies", "PullObjects"),
            *("ConfirmReceived", "PushLogs", "PushArtifact", "FinishRun"),
        ),
        Permission.HOSTED_RUN,
    ),
}

RPCS: Final[Mapping[str, Mapping[str, Permission]]] = {
    "flwr.proto.Control": _CONTROL,
    "flwr.proto.Exec": _EXEC,
    "flwr.proto.Fleet": _FLEET,
    "flwr.proto.GrpcAdapter": {"SendReceive": Permission.NODE},
    "trellis.appio.v1.NodeObjects": dict.fromkeys(("PullObjects", "PushObjects"), Permission.NODE),
    "trellis.appio.v1.ServerAppIO": _SERVERAPPIO,
}
"""By service and method."""

CHANGING: Final = frozenset(
    {
        *("StartRun", "StopRun", "UpdateRunSeriesDescription", "RegisterNode", "UnregisterNode"),
        *(name for name, permission in _CONTROL.items() if permission is Permission.FEDERATIONS_MANAGE),
        *("AcceptInvitation", "RejectInvitation", "RemoveAccountFromFederation"),
        *("CreateNode", "DeleteNode", "ActivateNode", "DeactivateNode"),
    }
)
"""What changes something that people care about: its audit lines are on the disk before it is done and answered."""

NOTED: Final = CHANGING | frozenset(
    {"GetFab", "Attend", *(name for name, permission in _CONTROL.items() if permission is not Permission.LOGIN)}
)
"""What has an audit line when it is allowed; what is denied always has one. Not the messages of a run: their number
would drown the rest, and the run's own log tells of them."""


def permission_of(service: str, method: str) -> Permission | None:
    """What the rpc asks for; None where nobody decided that."""
    return RPCS.get(service, {}).get(method)
