"""From the core's words to protobuf's and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from trellis_wire import config
from trellis_wire.messages import MessageError, Metadata, decode_message_object
from trellis_wire.objects import ObjectError, Tree, object_id
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, federation_pb2, fleet_pb2, message_pb2, node_pb2, records_pb2, run_pb2
from trellis_wire.signing import LICENSE

from trellis_superlink.core.federations import Federation, Invitation
from trellis_superlink.core.nodes import Node
from trellis_superlink.core.parcels import Parcel, State
from trellis_superlink.core.runs import Fab, HistoryEntry, Run


def iso(moment: float | None) -> str:
    """ISO 8601 in UTC with its offset, as every Flower release reads it; "" for None."""
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()


# ---- the edge protocol -------------------------------------------------------------------------------------------


def run_to_edge(run: Run, federation: str) -> run_pb2.Run:
    """`federation` is the name that the caller's release has for it."""
    return run_pb2.Run(
        run_id=run.run_id,
        fab_id=run.fab_id,
        fab_version=run.fab_version,
        fab_hash=run.fab_hash,
        override_config=config.to_edge(run.override_config),
        pending_at=iso(run.pending_at),
        starting_at=iso(run.starting_at),
        running_at=iso(run.running_at),
        finished_at=iso(run.finished_at),
        status=run_pb2.RunStatus(status=run.status, sub_status=run.outcome, details=run.details),
        flwr_aid=run.owner_id,
        account_name=run.owner_name,
        federation=federation,
        bytes_sent=run.bytes_sent,
        bytes_recv=run.bytes_received,
        clientapp_runtime=run.clientapp_runtime,
        # Each run is a series of its own: nodes of 1.31 and later keep an app's context per series, so that runs with
        # the same number (0, where none is set) would see each other's.
        series_id=run.run_id,
    )


def fab_to_edge(fab: Fab) -> run_pb2.Fab:
    """For a node. Whether it trusts who signed is its operator's to say; a SuperLink has no licences to check."""
    verifications = {**fab.signatures, LICENSE: "not needed on this SuperLink"} if fab.signatures else {}
    return run_pb2.Fab(hash_str=fab.fab_hash, content=fab.content, verifications=verifications)


def updated_at(run: Run) -> float:
    """When the run's status changed last."""
    return run.finished_at or run.running_at or run.starting_at or run.pending_at


def series_to_edge(run: Run, federation: str) -> run_pb2.RunSeries:
    """The series that a run is by itself."""
    return run_pb2.RunSeries(
        series_id=run.run_id,
        federation=federation,
        description=run.fab_id,
        created_at=iso(run.pending_at),
        updated_at=iso(updated_at(run)),
        last_run_status=run_pb2.RunStatus(status=run.status, sub_status=run.outcome, details=run.details),
        run_ids=[run.run_id],
    )


def event_to_edge(run_id: int, change: HistoryEntry) -> control_pb2.TaskEvent:
    """A change of status; `data` is JSON with the words of RunStatus."""
    return control_pb2.TaskEvent(
        id=change.number,
        timestamp=iso(change.at),
        run_id=run_id,
        event="run_status",
        data=json.dumps({"status": change.status, "sub_status": change.outcome, "details": change.details}),
    )


def node_to_edge(node: Node) -> node_pb2.NodeInfo:
    """The layout of 1.24 and later."""
    info = node_pb2.NodeInfo(
        node_id=node.node_id,
        owner_aid=node.owner_id,
        owner_name=node.owner_name,
        status=node.status,
        registered_at=iso(node.registered_at),
        heartbeat_interval=node.heartbeat_interval,
        public_key=node.public_key,
        trellis_held=node.held,
    )
    if node.activated_at is not None:
        info.last_activated_at = iso(node.activated_at)
    if node.deactivated_at is not None:
        info.last_deactivated_at = iso(node.deactivated_at)
    if node.unregistered_at is not None:
        info.unregistered_at = iso(node.unregistered_at)
    if node.online_until is not None:
        info.online_until = node.online_until
    if node.location:
        info.location = node.location
    if node.name:
        info.name = node.name
    return info


def federation_to_edge(federation: Federation, name: str) -> federation_pb2.Federation:
    """The layout of 1.27 and later. `name` is what the caller's release calls it."""
    return federation_pb2.Federation(
        name=name,
        description=federation.description,
        archived=federation.archived,
        members=[
            federation_pb2.Member(
                account=federation_pb2.Account(id=one.account_id, name=one.account_name), role=one.role
            )
            for one in federation.members
        ],
    )


def invitation_to_edge(invitation: Invitation) -> federation_pb2.Invitation:
    return federation_pb2.Invitation(
        federation_name=invitation.federation,
        inviter=federation_pb2.Account(id=invitation.inviter_id, name=invitation.inviter_name),
        invitee=federation_pb2.Account(name=invitation.invitee_name),
        status=invitation.status,
        created_at=iso(invitation.created_at),
        status_changed_at=iso(invitation.changed_at),
    )


def parcel_from_edge(message: message_pb2.Message, tree: message_pb2.ObjectTree, inline: Mapping[str, bytes]) -> Parcel:
    """A message that a node sends, with those of the inline objects that belong to it. ObjectError."""
    known = Tree.from_edge(tree)
    metadata = Metadata.from_edge(message.metadata)
    if metadata.message_id != known.object_id:
        raise ObjectError(
            "The message's id is not the id at the root of its object tree; send the tree of this message."
        )
    error = MessageError.from_edge(message.error) if message.HasField("error") else None
    objects = {} if not inline else {oid: inline[oid] for oid in known.nodes() if oid in inline}
    return Parcel(metadata, known, error, objects)


def parcel_to_edge(parcel: Parcel) -> tuple[message_pb2.Message, message_pb2.ObjectTree]:
    """A message for a node. `content` is present and empty unless the message carries an error (WIRE.md 10.5)."""
    message = message_pb2.Message(metadata=parcel.metadata.to_edge())
    if parcel.error is None:
        message.content.CopyFrom(records_pb2.RecordDict())
    else:
        message.error.CopyFrom(parcel.error.to_edge())
    return message, parcel.tree.to_edge()


def inline_from_edge(objects: Iterable[fleet_pb2.InlineObject]) -> dict[str, bytes]:
    return {one.object_id: one.content for one in objects}


# ---- the interior protocol ---------------------------------------------------------------------------------------


def parcel_from_appio(parcel: appio_pb2.Parcel) -> Parcel:
    """A message that an executor sends: the root travels inline and holds the metadata. ObjectError."""
    tree = Tree.from_appio(parcel.tree)
    objects = {one.object_id: one.content for one in parcel.objects}
    root = objects.get(tree.object_id)
    if root is None:
        raise ObjectError("The Message object does not travel with its parcel; the root of a parcel is always inline.")
    if object_id(root) != tree.object_id:
        raise ObjectError("The Message object has another hash than its tree says; send it again unaltered.")
    metadata, error, _ = decode_message_object(root)
    return Parcel(metadata, tree, error, objects)


def parcel_to_appio(parcel: Parcel) -> appio_pb2.Parcel:
    return _parcel(parcel.tree, parcel.objects)


def state_from_appio(parcel: appio_pb2.Parcel) -> State:
    """An app's Context. ObjectError."""
    return State(Tree.from_appio(parcel.tree), {one.object_id: one.content for one in parcel.objects})


def state_to_appio(state: State) -> appio_pb2.Parcel:
    return _parcel(state.tree, state.objects)


def _parcel(tree: Tree, objects: Mapping[str, bytes]) -> appio_pb2.Parcel:
    return appio_pb2.Parcel(
        tree=tree.to_appio(),
        objects=[appio_pb2.Object(object_id=oid, content=content) for oid, content in objects.items()],
    )


def run_to_appio(run: Run, node_id: int) -> appio_pb2.RunInfo:
    return appio_pb2.RunInfo(
        run_id=run.run_id,
        node_id=node_id,
        fab_id=run.fab_id,
        fab_version=run.fab_version,
        fab_hash=run.fab_hash,
        override_config=config.to_appio(run.override_config),
    )
