"""Control (Flower 1.21-1.36) and Exec (1.20): what command lines ask."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import Message
from grpc import StatusCode
from trellis_wire import config
from trellis_wire.identity import parse_public_key, public_pem
from trellis_wire.pb.edge import control_pb2, run_pb2
from trellis_wire.signing import check_entries

from trellis_superlink.core.errors import BadConfig, BadFab, NotFound
from trellis_superlink.core.logs import LogEntry
from trellis_superlink.core.principals import DEFAULT_FEDERATION
from trellis_superlink.core.runs import Run
from trellis_superlink.core.service import Core
from trellis_superlink.edges import convert
from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.links import Links
from trellis_superlink.edges.login import Login
from trellis_superlink.edges.rpc import Call, Drain, Handler, Service
from trellis_superlink.edges.rpcs import CONTROL, EXEC, NO_LOGIN, SIMULATIONS
from trellis_superlink.edges.versions import (
    DEFAULT_NAMES,
    Dialect,
    Version,
    dialect,
    encode,
)
from trellis_superlink.metrics import Metrics

T = TypeVar("T")

MAX_REQUEST = 12 * 1024 * 1024
"""Bytes of one request over HTTP: a FAB of 10 MiB, the largest there is, with room to spare."""

LOG_ITEM = 1024 * 1024
"""Characters of log in one item of a stream."""
MAX_OVERRIDES = 10_000
FIRST_ITEM = 4 * LOG_ITEM
"""Characters of log in the first item: `flwr log --show` prints that one only."""


class Control:
    """The rpcs of Control. Who calls is the guard's to find out. `login` None: there is one account, as on stock."""

    def __init__(
        self,
        core: Core,
        drain: Drain,
        metrics: Metrics,
        links: Links,
        assumed: Version | None = None,
        login: Login | None = None,
    ) -> None:
        """`assumed`: the release that a caller has who does not say it."""
        self._core = core
        self._login = login
        self._assumed = assumed
        self._links = links
        self._drain = drain
        self._metrics = metrics

    def services(self) -> tuple[Service, ...]:
        """Control, and Exec with the methods that it had."""
        shared: dict[str, Handler] = {
            "StartRun": self.start_run,
            "StopRun": self.stop_run,
            "StreamLogs": self.stream_logs,
            "ListRuns": self.list_runs,
            "GetLoginDetails": self.no_login if self._login is None else self._login.get_login_details,
            "GetAuthTokens": self.no_login if self._login is None else self._login.get_auth_tokens,
        }
        control = {
            **shared,
            "PullArtifacts": self.pull_artifacts,
            "RegisterNode": self.register_node,
            "UnregisterNode": self.unregister_node,
            "ListNodes": self.list_nodes,
            "ListFederations": self.list_federations,
            "ShowFederation": self.show_federation,
            "CreateFederation": self.create_federation,
            "ArchiveFederation": self.archive_federation,
            "AddNodeToFederation": self.add_node_to_federation,
            "RemoveNodeFromFederation": self.remove_node_from_federation,
            "RemoveAccountFromFederation": self.remove_account_from_federation,
            "CreateInvitation": self.create_invitation,
            "ListInvitations": self.list_invitations,
            "AcceptInvitation": self.accept_invitation,
            "RejectInvitation": self.reject_invitation,
            "RevokeInvitation": self.revoke_invitation,
            "StreamRunEvents": self.stream_run_events,
            "ListRunSeries": self.list_run_series,
            "GetRunSeries": self.get_run_series,
            "ListRunSeriesEvents": self.list_run_series_events,
            "RefreshAuthTokens": self.no_login if self._login is None else self._login.refresh_auth_tokens,
        }
        return (
            Service(CONTROL, "control", control, details=self._details),
            Service(EXEC, "control", shared, details=self._details),
        )

    # ---- what the caller's release wants ---------------------------------------------------------------------------

    def _version(self, call: Call) -> Version | None:
        return call.version or self._assumed

    def _speech(self, call: Call) -> Dialect:
        return dialect(self._version(call))

    def _details(self, call: Call, error: EdgeError) -> str:
        return error.as_json() if error.code is not None and self._speech(call).json_errors else error.text

    def _name(self, call: Call, federation: str) -> str:
        """What the caller's release calls a federation."""
        return self._speech(call).federation if federation == DEFAULT_FEDERATION else federation

    def _run(self, call: Call, run: Run) -> run_pb2.Run:
        return convert.run_to_edge(run, self._name(call, run.federation))

    async def _send(self, call: Call, answer: Message) -> None:
        """In the layout of the caller's release."""
        await call.send(encode(answer, self._version(call)))

    # ---- runs ------------------------------------------------------------------------------------------------------

    async def start_run(self, call: Call) -> None:
        request = await call.request(control_pb2.StartRunRequest)
        federation = _federation(request.federation)
        call.note(federation=federation)
        if not request.fab.content:
            what = f"The app {request.app_spec!r} would come from Flower Hub" if request.app_spec else "No app was sent"
            raise EdgeError(StatusCode.FAILED_PRECONDITION, f"{what}; give `flwr run` the app's directory.", 33)
        if request.fab.hash_str and request.fab.hash_str != hashlib.sha256(request.fab.content).hexdigest():
            raise BadFab("The app was altered on its way: its hash is not the one that was sent with it.")
        if len(request.override_config) > MAX_OVERRIDES:
            raise BadConfig(f"A run's configuration can override {MAX_OVERRIDES:,} keys at most.")
        run = await self._core.runs.start(
            call.account,
            request.fab.content,
            override_config=config.from_edge(request.override_config),
            federation=federation,
            signatures=check_entries(request.fab.verifications),
        )
        call.note(run_id=run.run_id, fab_hash=run.fab_hash)
        await call.send(
            control_pb2.StartRunResponse(
                run_id=run.run_id, series_id=run.run_id, federation=self._name(call, run.federation)
            )
        )

    async def stop_run(self, call: Call) -> None:
        request = await call.request(control_pb2.StopRunRequest)
        call.note(run_id=request.run_id)
        await _run_known(self._core.runs.stop(call.account, request.run_id))
        await call.send(control_pb2.StopRunResponse(success=True))

    async def list_runs(self, call: Call) -> None:
        request = await call.request(control_pb2.ListRunsRequest)
        if request.HasField("run_id"):
            runs = [await _run_known(self._core.runs.get(call.account, request.run_id))]
        else:
            limit = request.limit if request.HasField("limit") else None
            runs = await self._core.runs.list(call.account, limit=limit, skip=request.skip)
        answer = control_pb2.ListRunsResponse(now=_now())
        for run in runs:
            answer.run_dict[run.run_id].CopyFrom(self._run(call, run))
        await call.send(answer)

    async def stream_logs(self, call: Call) -> None:
        """Open until the run has finished and all of its log was sent: a command line takes the end for that."""
        request = await call.request(control_pb2.StreamLogsRequest)
        call.note(run_id=request.run_id)
        after = request.after_timestamp
        gathered: list[LogEntry] = []
        length = 0
        while length < FIRST_ITEM:
            batch = await _run_known(self._core.logs.read(call.account, request.run_id, after=after))
            if not batch:
                break
            gathered += batch
            length += sum(len(entry.text) for entry in batch)
            after = batch[-1].at
        if gathered:
            await call.send(_log_item(gathered))
            gathered.clear()
        with self._metrics.held("control"):
            async for batch in self._drain.until(self._core.logs.follow(call.account, request.run_id, after=after)):
                for item in _slices(batch):
                    await call.send(_log_item(item))

    async def pull_artifacts(self, call: Call) -> None:
        request = await call.request(control_pb2.PullArtifactsRequest)
        call.note(run_id=request.run_id)
        found = await _run_known(self._core.artifacts.list(call.account, request.run_id))
        if not found:
            raise EdgeError(StatusCode.NOT_FOUND, f"Run {request.run_id} left no files behind.")
        await call.send(control_pb2.PullArtifactsResponse(url=self._links.make(request.run_id, found[0].name)))

    async def stream_run_events(self, call: Call) -> None:
        """Each change of the run's status as an event, until it has finished."""
        request = await call.request(control_pb2.StreamRunEventsRequest)
        call.note(run_id=request.run_id)
        changes = self._core.runs.follow(call.account, request.run_id, request.after_task_event_id)
        await _run_known(self._core.runs.get(call.account, request.run_id))
        with self._metrics.held("control"):
            async for batch in self._drain.until(changes):
                for change in batch:
                    event = convert.event_to_edge(request.run_id, change)
                    await self._send(call, control_pb2.StreamRunEventsResponse(task_event=event))

    # ---- series: each run is one of its own ------------------------------------------------------------------------

    async def list_run_series(self, call: Call) -> None:
        request = await call.request(control_pb2.ListRunSeriesRequest)
        federation = None if not request.federation_id else _federation(request.federation_id)
        runs = [] if request.is_agent else await self._core.runs.list(call.account, federation=federation)
        if request.updated_before:
            before = _time(request.updated_before)
            runs = [run for run in runs if _time(convert.iso(convert.updated_at(run))) < before]
        limit = request.limit if request.HasField("limit") else None
        entries = [convert.series_to_edge(run, self._name(call, run.federation)) for run in runs[:limit]]
        await call.send(control_pb2.ListRunSeriesResponse(entries=entries))

    async def get_run_series(self, call: Call) -> None:
        request = await call.request(control_pb2.GetRunSeriesRequest)
        run = await self._of_series(call, request.series_id)
        series = convert.series_to_edge(run, self._name(call, run.federation))
        await call.send(control_pb2.GetRunSeriesResponse(series=series, runs=[self._run(call, run)]))

    async def list_run_series_events(self, call: Call) -> None:
        request = await call.request(control_pb2.ListRunSeriesEventsRequest)
        await self._of_series(call, request.series_id)
        changes = await self._core.runs.history(call.account, request.series_id)
        await call.send(
            control_pb2.ListRunSeriesEventsResponse(
                events=[convert.event_to_edge(request.series_id, change) for change in changes]
            )
        )

    async def _of_series(self, call: Call, series_id: int) -> Run:
        try:
            return await self._core.runs.get(call.account, series_id)
        except NotFound as error:
            raise EdgeError(StatusCode.NOT_FOUND, "Run series ID not found", 17) from error

    # ---- nodes -----------------------------------------------------------------------------------------------------

    async def register_node(self, call: Call) -> None:
        request = await call.request(control_pb2.RegisterNodeRequest)
        key = public_pem(parse_public_key(request.public_key))
        node_id = await self._core.nodes.enrol(call.account, key, name=request.name, location=request.location)
        call.note(node_id=node_id)
        await call.send(control_pb2.RegisterNodeResponse(node_id=node_id))

    async def unregister_node(self, call: Call) -> None:
        request = await call.request(control_pb2.UnregisterNodeRequest)
        call.note(node_id=request.node_id)
        try:
            await self._core.nodes.unregister(call.account, request.node_id)
        except NotFound as error:
            raise EdgeError(StatusCode.NOT_FOUND, "Node ID not found for account", 24) from error
        await call.send(control_pb2.UnregisterNodeResponse())

    async def list_nodes(self, call: Call) -> None:
        await call.request(control_pb2.ListNodesRequest)
        nodes = await self._core.nodes.list(call.account)
        answer = control_pb2.ListNodesResponse(nodes_info=[convert.node_to_edge(node) for node in nodes], now=_now())
        await self._send(call, answer)

    # ---- federations -----------------------------------------------------------------------------------------------

    async def list_federations(self, call: Call) -> None:
        await call.request(control_pb2.ListFederationsRequest)
        found = await self._core.federations.list(call.account)
        answer = [convert.federation_to_edge(one, self._name(call, one.name)) for one in found]
        await self._send(call, control_pb2.ListFederationsResponse(federations=answer))

    async def show_federation(self, call: Call) -> None:
        request = await call.request(control_pb2.ShowFederationRequest)
        name = _federation(request.federation_name)
        federation = await self._core.federations.get(call.account, name)
        answer = convert.federation_to_edge(federation, self._name(call, name))
        answer.nodes.extend(convert.node_to_edge(node) for node in await self._core.nodes.list(call.account, name))
        answer.runs.extend(self._run(call, run) for run in await self._core.runs.list(call.account, federation=name))
        await self._send(call, control_pb2.ShowFederationResponse(federation=answer, now=_now()))

    async def create_federation(self, call: Call) -> None:
        request = await call.request(control_pb2.CreateFederationRequest)
        call.note(federation=request.federation_name)
        if request.simulation:
            raise SIMULATIONS.error()
        made = await self._core.federations.create(call.account, request.federation_name, request.description)
        call.note(federation=made.name)
        answer = convert.federation_to_edge(made, made.name)
        await self._send(call, control_pb2.CreateFederationResponse(federation=answer))

    async def archive_federation(self, call: Call) -> None:
        request = await call.request(control_pb2.ArchiveFederationRequest)
        await self._core.federations.archive(call.account, _noted(call, request.federation_name))
        await call.send(control_pb2.ArchiveFederationResponse())

    async def add_node_to_federation(self, call: Call) -> None:
        request = await call.request(control_pb2.AddNodeToFederationRequest)
        call.note(node_id=request.node_id)
        await self._core.federations.add_node(call.account, _noted(call, request.federation_name), request.node_id)
        await call.send(control_pb2.AddNodeToFederationResponse())

    async def remove_node_from_federation(self, call: Call) -> None:
        request = await call.request(control_pb2.RemoveNodeFromFederationRequest)
        call.note(node_id=request.node_id)
        await self._core.federations.remove_node(call.account, _noted(call, request.federation_name), request.node_id)
        await call.send(control_pb2.RemoveNodeFromFederationResponse())

    async def remove_account_from_federation(self, call: Call) -> None:
        request = await call.request(control_pb2.RemoveAccountFromFederationRequest)
        whom = request.account_name if request.HasField("account_name") else None
        call.note(subject=whom)
        await self._core.federations.remove_account(call.account, _noted(call, request.federation_name), whom)
        await call.send(control_pb2.RemoveAccountFromFederationResponse())

    async def create_invitation(self, call: Call) -> None:
        request = await call.request(control_pb2.CreateInvitationRequest)
        whom = request.invitee_account_name
        call.note(subject=whom)
        await self._core.federations.invite(call.account, _noted(call, request.federation_name), whom)
        await call.send(control_pb2.CreateInvitationResponse())

    async def list_invitations(self, call: Call) -> None:
        await call.request(control_pb2.ListInvitationsRequest)
        sent, received = await self._core.federations.invitations(call.account)
        await call.send(
            control_pb2.ListInvitationsResponse(
                created_invitations=[convert.invitation_to_edge(one) for one in sent],
                received_invitations=[convert.invitation_to_edge(one) for one in received],
            )
        )

    async def accept_invitation(self, call: Call) -> None:
        request = await call.request(control_pb2.AcceptInvitationRequest)
        await self._core.federations.answer(call.account, _noted(call, request.federation_name), accept=True)
        await call.send(control_pb2.AcceptInvitationResponse())

    async def reject_invitation(self, call: Call) -> None:
        request = await call.request(control_pb2.RejectInvitationRequest)
        await self._core.federations.answer(call.account, _noted(call, request.federation_name), accept=False)
        await call.send(control_pb2.RejectInvitationResponse())

    async def revoke_invitation(self, call: Call) -> None:
        request = await call.request(control_pb2.RevokeInvitationRequest)
        whom = request.invitee_account_name
        call.note(subject=whom)
        await self._core.federations.revoke(call.account, _noted(call, request.federation_name), whom)
        await call.send(control_pb2.RevokeInvitationResponse())

    # ---- login -----------------------------------------------------------------------------------------------------

    async def no_login(self, call: Call) -> None:
        await call.body()
        raise NO_LOGIN.error()


def _federation(name: str) -> str:
    """The core's name for it: releases call the default one differently."""
    return DEFAULT_FEDERATION if name in DEFAULT_NAMES else name


def _noted(call: Call, name: str) -> str:
    """The federation that a call is about, for its audit line too."""
    federation = _federation(name)
    call.note(federation=federation)
    return federation


async def _run_known(work: Awaitable[T]) -> T:
    """What the core answers about a run; an unknown one gets the words that command lines look for."""
    try:
        return await work
    except NotFound as error:
        raise EdgeError(StatusCode.NOT_FOUND, "Run ID not found", 16) from error


def _time(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise EdgeError(StatusCode.INVALID_ARGUMENT, f"{text!r} is no time in ISO 8601.") from error


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _log_item(entries: list[LogEntry]) -> control_pb2.StreamLogsResponse:
    return control_pb2.StreamLogsResponse(
        log_output="".join(entry.text for entry in entries), latest_timestamp=entries[-1].at
    )


def _slices(entries: list[LogEntry]) -> list[list[LogEntry]]:
    """Entries in groups of about LOG_ITEM characters at most."""
    groups: list[list[LogEntry]] = [[]]
    length = 0
    for entry in entries:
        if groups[-1] and length + len(entry.text) > LOG_ITEM:
            groups.append([])
            length = 0
        groups[-1].append(entry)
        length += len(entry.text)
    return [group for group in groups if group]
