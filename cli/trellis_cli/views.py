"""Runs, nodes and federations as stock's command line shows them: the same JSON keys (Flower 1.36), the same order."""

from datetime import UTC, datetime
from typing import Any

from trellis_wire.pb.edge.control_pb2 import ShowFederationResponse
from trellis_wire.pb.edge.federation_pb2 import Federation, Invitation
from trellis_wire.pb.edge.node_pb2 import NodeInfo
from trellis_wire.pb.edge.run_pb2 import Run

from trellis_cli.output import Cell, Output, human_bytes, human_duration

_STYLES = {
    "finished:completed": "green",
    "finished:failed": "red",
    "finished:stopped": "yellow",
    "starting": "blue",
    "running": "blue",
    "pending": "bright_black",
    "online": "green",
    "offline": "yellow",
    "registered": "blue",
    "unregistered": "red",
}

RUN_COLUMNS = ("Run ID", "Federation", "App", "Status", "Elapsed", "Status changed", "Notice")
FEDERATION_COLUMNS = ("Federation", "Description", "Status")
MEMBER_COLUMNS = ("Account", "Role")
INVITATION_COLUMNS = ("Federation", "Invitation", "Status", "Created at", "Status changed")
NODE_COLUMNS = ("Node ID", "Owner", "Status", "Elapsed", "Status changed")


def styled(status: str) -> Cell:
    return Cell(status, _STYLES.get(status, ""))


def instant(text: str) -> str:
    """An ISO time of the wire as `YYYY-MM-DD HH:MM:SSZ`; N/A where it is empty."""
    if not text:
        return "N/A"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def elapsed(since: str, until: str) -> float:
    """Seconds between two ISO times; 0 where the first is empty."""
    if not since or not until:
        return 0.0
    return max(0.0, (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds())


def run_status(run: Run) -> str:
    return f"{run.status.status}:{run.status.sub_status}" if run.status.sub_status else run.status.status


def run_elapsed(run: Run, now: str) -> float:
    return elapsed(run.running_at, run.finished_at or now)


def newest_first(runs: "list[Run]") -> "list[Run]":
    return sorted(runs, key=lambda run: run.pending_at, reverse=True)


def run_row(run: Run, now: str) -> list[Cell]:
    changed = run.finished_at or run.running_at or run.starting_at or run.pending_at
    return [
        Cell(str(run.run_id), "bold"),
        Cell(run.federation),
        Cell(f"@{run.fab_id}=={run.fab_version}"),
        styled(run_status(run)),
        Cell(human_duration(run_elapsed(run, now))),
        Cell(instant(changed)),
        Cell(run.status.details.strip().rpartition("\n")[2], "yellow"),
    ]


def run_details(run: Run, now: str) -> list[tuple[str, Cell]]:
    took = run_elapsed(run, now)
    return [
        ("Run ID", Cell(str(run.run_id), "bold")),
        ("Federation", Cell(run.federation)),
        ("App", Cell(f"@{run.fab_id}=={run.fab_version}")),
        ("FAB hash", Cell(run.fab_hash)),
        ("Status", styled(run_status(run))),
        ("Status details", Cell(run.status.details or "N/A")),
        ("Elapsed", Cell(human_duration(took))),
        ("Pending at", Cell(instant(run.pending_at))),
        ("Starting at", Cell(instant(run.starting_at))),
        ("Running at", Cell(instant(run.running_at))),
        ("Finished at", Cell(instant(run.finished_at))),
        ("Traffic from SuperNodes", Cell(human_bytes(run.bytes_recv))),
        ("Traffic to SuperNodes", Cell(human_bytes(run.bytes_sent))),
        ("Compute time of ClientApps", Cell(human_duration(run.clientapp_runtime))),
    ]


def run_json(run: Run, now: str) -> dict[str, Any]:
    took = run_elapsed(run, now)
    return {
        "run-id": str(run.run_id),
        "federation-id": run.federation,
        "fab-id": run.fab_id,
        "fab-name": run.fab_id.rpartition("/")[2],
        "fab-version": run.fab_version,
        "fab-hash": run.fab_hash,
        "status": run_status(run),
        "status-details": run.status.details or "N/A",
        "elapsed": took,
        "pending-at": instant(run.pending_at),
        "starting-at": instant(run.starting_at),
        "running-at": instant(run.running_at),
        "finished-at": instant(run.finished_at),
        "network-traffic": {
            "inbound-bytes": run.bytes_recv,
            "outbound-bytes": run.bytes_sent,
            "total-bytes": run.bytes_recv + run.bytes_sent,
        },
        "compute-time": {
            "serverapp-seconds": took,
            "clientapp-seconds": run.clientapp_runtime,
            "total-seconds": took + run.clientapp_runtime,
        },
    }


def node_row(node: NodeInfo, now: str) -> list[Cell]:
    changed = {
        "online": node.last_activated_at,
        "offline": node.last_deactivated_at,
        "unregistered": node.unregistered_at,
    }.get(node.status, node.registered_at)
    online = human_duration(elapsed(node.last_activated_at, now)) if node.status == "online" else ""
    owner = Cell(node.owner_name)
    status = Cell("waits for approval", "yellow") if node.trellis_held else styled(node.status)
    return [Cell(str(node.node_id), "bold"), owner, status, Cell(online), Cell(instant(changed))]


def node_json(node: NodeInfo, now: str) -> dict[str, Any]:
    """Those of stock, and `held` of one that waits for approval."""
    return ({"held": True} if node.trellis_held else {}) | {
        "node-id": str(node.node_id),
        "owner-name": node.owner_name,
        "status": node.status,
        "created-at": instant(node.registered_at),
        "online-at": instant(node.last_activated_at),
        "online-elapsed": elapsed(node.last_activated_at, now),
        "offline-at": instant(node.last_deactivated_at),
        "deleted-at": instant(node.unregistered_at),
    }


def federation_row(federation: Federation) -> list[Cell]:
    status = "archived" if federation.archived else "active"
    return [Cell(federation.name, "bold"), Cell(federation.description), Cell(status)]


def federation_json(federation: Federation) -> dict[str, Any]:
    return {
        "id": federation.name,
        "description": federation.description,
        "archived": federation.archived,
        "simulation": federation.simulation,
    }


def show_federation(answer: ShowFederationResponse, out: Output) -> None:
    """Members, SuperNodes and runs, as tables or as one document."""
    federation, now = answer.federation, answer.now
    runs = newest_first(list(federation.runs))
    if out.as_json:
        out.json(
            {
                "success": True,
                "federation": {
                    **federation_json(federation),
                    "members": [{"member_id": one.account.name, "role": one.role} for one in federation.members],
                    "nodes": [
                        {"node_id": str(node.node_id), "owner": node.owner_name, "status": node.status}
                        for node in federation.nodes
                    ],
                    "runs": [
                        {
                            "run_id": str(run.run_id),
                            "app": f"@{run.fab_id}=={run.fab_version}",
                            "status": run_status(run),
                            "elapsed": run_elapsed(run, now),
                        }
                        for run in runs
                    ],
                },
            }
        )
        return
    out.table(FEDERATION_COLUMNS, [federation_row(federation)])
    out.table(MEMBER_COLUMNS, [[Cell(one.account.name, "bold"), Cell(one.role)] for one in federation.members])
    out.table(NODE_COLUMNS, [node_row(node, now) for node in federation.nodes])
    out.table(RUN_COLUMNS, [run_row(run, now) for run in runs])


def invitation_row(invitation: Invitation, *, sent: bool) -> list[Cell]:
    whose = f"of {invitation.invitee.name}" if sent else f"from {invitation.inviter.name}"
    when = [Cell(instant(one)) for one in (invitation.created_at, invitation.status_changed_at)]
    return [Cell(invitation.federation_name, "bold"), Cell(whose), Cell(invitation.status), *when]


def invitation_json(invitation: Invitation, *, sent: bool) -> dict[str, Any]:
    whose = ("invited", invitation.invitee.name) if sent else ("invited-by", invitation.inviter.name)
    return {
        "federation-id": invitation.federation_name,
        whose[0]: whose[1],
        "status": invitation.status,
        "created-at": instant(invitation.created_at),
        "status-changed-at": instant(invitation.status_changed_at),
    }
