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
from trellis_wire.pb.edge import control_pb2, federation_pb2

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
from trellis_superlink.edges.rpcs import CONTROL, EXEC, NO_LOGIN
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

    async def _send(self, call: Call, answer: Message) -> None:
        """In the layout of the caller's release."""
        await call.send(encode(answer, self._version(call)))

    # ---- runs ------------------------------------------------------------------------------------------------------

    async def start_run(self, call: Call) -> None:
        request = await call.request(control_pb2.StartRunRequest)
        _require_federation(request.federation)
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
            federation=DEFAULT_FEDERATION,
        )
        call.note(run_id=run.run_id, fab_hash=run.fab_hash)
        await call.send(
            control_pb2.StartRunResponse(
                run_id=run.run_id, series_id=run.run_id, federation=self._speech(call).federation
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
            answer.run_dict[run.run_id].CopyFrom(convert.run_to_edge(run, self._speech(call).federation))
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
        _require_federation(request.federation_id)
        runs = [] if request.is_agent else await self._core.runs.list(call.account)
        if request.updated_before:
            before = _time(request.updated_before)
            runs = [run for run in runs if _time(convert.iso(convert.updated_at(run))) < before]
        limit = request.limit if request.HasField("limit") else None
        name = self._speech(call).federation
        await call.send(
            control_pb2.ListRunSeriesResponse(entries=[convert.series_to_edge(run, name) for run in runs[:limit]])
        )

    async def get_run_series(self, call: Call) -> None:
        request = await call.request(control_pb2.GetRunSeriesRequest)
        run = await self._of_series(call, request.series_id)
        name = self._speech(call).federation
        await call.send(
            control_pb2.GetRunSeriesResponse(
                series=convert.series_to_edge(run, name), runs=[convert.run_to_edge(run, name)]
            )
        )

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

    # ---- the one federation ----------------------------------------------------------------------------------------

    async def list_federations(self, call: Call) -> None:
        await call.request(control_pb2.ListFederationsRequest)
        federation = federation_pb2.Federation(name=self._speech(call).federation)
        await self._send(call, control_pb2.ListFederationsResponse(federations=[federation]))

    async def show_federation(self, call: Call) -> None:
        request = await call.request(control_pb2.ShowFederationRequest)
        _require_federation(request.federation_name)
        speech = self._speech(call)
        member = federation_pb2.Member(
            account=federation_pb2.Account(id=call.account.id, name=call.account.name), role="owner"
        )
        nodes = [convert.node_to_edge(node) for node in await self._core.nodes.list(call.account)]
        runs = [convert.run_to_edge(run, speech.federation) for run in await self._core.runs.list(call.account)]
        federation = federation_pb2.Federation(name=speech.federation, members=[member], nodes=nodes, runs=runs)
        await self._send(call, control_pb2.ShowFederationResponse(federation=federation, now=_now()))

    # ---- login -----------------------------------------------------------------------------------------------------

    async def no_login(self, call: Call) -> None:
        await call.body()
        raise NO_LOGIN.error()


def _require_federation(name: str) -> None:
    if name not in DEFAULT_NAMES:
        raise EdgeError(StatusCode.FAILED_PRECONDITION, f"Federation '{name}' does not exist", 25)


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
