"""Control over gRPC (Flower 1.21-1.36) or HTTP (1.33 on), Trellis offers both: calls, and what failures mean."""

import json
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import grpc
from trellis_kit.lifecycle import Fatal
from trellis_kit.probe import Target, speaks_http, why
from trellis_kit.tls import ClientTls, proxy_for
from trellis_wire.pb.edge import control_pb2 as pb
from trellis_wire.pb.edge.control_pb2_grpc import ControlStub
from trellis_wire.pb.edge.federation_pb2 import Federation
from trellis_wire.pb.edge.run_pb2 import Run

from trellis_cli.connection import Connection
from trellis_cli.credentials import Tokens
from trellis_cli.errors import CliError, Unreachable, UsageError
from trellis_cli.session import ACCESS, REFRESH, Session, session_for

_T = TypeVar("_T")

# Says which generation of messages we read: NodeInfo has today's layout from 1.24 on, the header exists from 1.30 on.
_METADATA = (
    ("flwr-package-name", "flwr"),
    ("flwr-package-version", "1.36.0"),
    ("flwr-component-name", "flwr CLI"),
)
_CALL_SECONDS = 30.0
_UPLOAD_SECONDS = 120.0  # a FAB has at most 10 MiB
_STREAM_SECONDS = 60.0  # stock's refresh of the log stream: also what notices a connection that died silently
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A SuperLink that is started again is found within two seconds, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_LOOPBACK = ("127.", "localhost:", "[::1]:")


class Control:
    """An open connection to a SuperLink's Control API. Every failure comes out as a CliError, streams' excepted."""

    def __init__(self, connection: Connection, session: Session | None = None) -> None:
        """`session`: as whom to speak, if not as whom the environment or the last login say. UsageError."""
        self.connection = connection
        self._session = session_for(connection) if session is None else session
        try:
            self._channel, self._over_http = _open(connection, self._session)
        except Fatal as fatal:  # certificates that are none
            raise UsageError(f"{fatal}.") from fatal
        self._stub = ControlStub(self._channel)

    def __enter__(self) -> "Control":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    def start_run(self, request: pb.StartRunRequest) -> pb.StartRunResponse:
        """Start a run. A stock SuperLink of 1.24 and 1.25 knows its federation only as "default" and refuses ""."""
        if request.federation:
            return self._call(self._stub.StartRun, request, _UPLOAD_SECONDS)
        try:
            response = self._call(self._stub.StartRun, request, _UPLOAD_SECONDS)
        except CliError as error:
            if isinstance(error, Unreachable) or "federation" not in str(error).lower():
                raise
        else:
            if response.HasField("run_id"):
                return response
        again = pb.StartRunRequest()
        again.CopyFrom(request)
        again.federation = "default"
        return self._call(self._stub.StartRun, again, _UPLOAD_SECONDS)

    def list_runs(self, limit: int | None = None) -> pb.ListRunsResponse:
        return self._call(self._stub.ListRuns, pb.ListRunsRequest(limit=limit))

    def get_run(self, run_id: int) -> tuple[Run, str]:
        """The run and the SuperLink's clock. CliError where there is no such run."""
        response = self._call(self._stub.ListRuns, pb.ListRunsRequest(run_id=run_id), missing=no_run(run_id))
        if run_id not in response.run_dict:
            raise CliError(no_run(run_id))
        return response.run_dict[run_id], response.now

    def stop_run(self, run_id: int) -> bool:
        request = pb.StopRunRequest(run_id=run_id)
        return self._call(self._stub.StopRun, request, missing=no_run(run_id)).success

    def pull_artifacts(self, run_id: int) -> str:
        """A link to the files that a finished run left behind. CliError where it left none."""
        request = pb.PullArtifactsRequest(run_id=run_id)
        try:
            response = self._call(self._stub.PullArtifacts, request)
        except CliError as error:
            # NOT_FOUND means either: no such run, or one that left nothing.
            if isinstance(error.__cause__, grpc.RpcError) and error.__cause__.code() is grpc.StatusCode.NOT_FOUND:
                self.get_run(run_id)
                raise CliError(left_nothing(run_id)) from error
            raise
        if not response.url:
            raise CliError(left_nothing(run_id))
        return response.url

    def list_nodes(self) -> pb.ListNodesResponse:
        return self._call(self._stub.ListNodes, pb.ListNodesRequest())

    def register_node(self, public_key: bytes) -> int:
        """The new node's id. The key is a SubjectPublicKeyInfo PEM."""
        response = self._call(self._stub.RegisterNode, pb.RegisterNodeRequest(public_key=public_key))
        if not response.HasField("node_id"):
            raise CliError("The SuperLink did not register the SuperNode and did not say why; its log may.")
        return response.node_id

    def unregister_node(self, node_id: int) -> None:
        self._call(
            self._stub.UnregisterNode,
            pb.UnregisterNodeRequest(node_id=node_id),
            missing=no_node(node_id),
        )

    def list_federations(self) -> list[Federation]:
        return list(self._call(self._stub.ListFederations, pb.ListFederationsRequest()).federations)

    def show_federation(self, name: str) -> pb.ShowFederationResponse:
        return self._call(self._stub.ShowFederation, pb.ShowFederationRequest(federation_name=name))

    def create_federation(self, name: str, description: str) -> str:
        """Its whole name."""
        request = pb.CreateFederationRequest(federation_name=name, description=description)
        return self._call(self._stub.CreateFederation, request).federation.name

    def archive_federation(self, name: str) -> None:
        self._call(self._stub.ArchiveFederation, pb.ArchiveFederationRequest(federation_name=name))

    def add_to_federation(self, node_id: int, name: str) -> None:
        request = pb.AddNodeToFederationRequest(federation_name=name, node_id=node_id)
        self._call(self._stub.AddNodeToFederation, request, missing=no_node(node_id))

    def remove_from_federation(self, node_id: int, name: str) -> None:
        request = pb.RemoveNodeFromFederationRequest(federation_name=name, node_id=node_id)
        self._call(self._stub.RemoveNodeFromFederation, request)

    def remove_account(self, account: str | None, name: str) -> None:
        """None: the caller's own."""
        request = pb.RemoveAccountFromFederationRequest(federation_name=name, account_name=account)
        self._call(self._stub.RemoveAccountFromFederation, request)

    def invitations(self) -> pb.ListInvitationsResponse:
        return self._call(self._stub.ListInvitations, pb.ListInvitationsRequest())

    def invite(self, account: str, name: str) -> None:
        request = pb.CreateInvitationRequest(federation_name=name, invitee_account_name=account)
        self._call(self._stub.CreateInvitation, request)

    def revoke_invitation(self, account: str, name: str) -> None:
        request = pb.RevokeInvitationRequest(federation_name=name, invitee_account_name=account)
        self._call(self._stub.RevokeInvitation, request)

    def accept_invitation(self, name: str) -> None:
        self._call(self._stub.AcceptInvitation, pb.AcceptInvitationRequest(federation_name=name))

    def reject_invitation(self, name: str) -> None:
        self._call(self._stub.RejectInvitation, pb.RejectInvitationRequest(federation_name=name))

    def stream_logs(self, run_id: int, after: float, timeout: float = _STREAM_SECONDS) -> "LogStream":
        """The log from `after` (Unix seconds) on. Iterating raises grpc.RpcError: the caller knows which are fatal."""
        request = pb.StreamLogsRequest(run_id=run_id, after_timestamp=after)
        call = self._stub.StreamLogs(request, timeout=timeout, metadata=self._metadata())
        return LogStream(call, None if self._over_http else self._take_tokens)

    def login_details(self) -> pb.GetLoginDetailsResponse:
        return self._call(self._stub.GetLoginDetails, pb.GetLoginDetailsRequest())

    def auth_tokens(self, device_code: str) -> pb.GetAuthTokensResponse:
        """Empty until the user has agreed."""
        return self._call(self._stub.GetAuthTokens, pb.GetAuthTokensRequest(device_code=device_code))

    def explain(self, error: grpc.RpcError, missing: str | None = None) -> CliError:
        """What this failure means, and what to do about it; `missing` is what NOT_FOUND means."""
        if missing is not None and error.code() is grpc.StatusCode.NOT_FOUND:
            return CliError(missing)
        return explain(error, self.connection)

    def _call(
        self, method: "Callable[..., _T]", request: Any, timeout: float = _CALL_SECONDS, missing: str | None = None
    ) -> _T:
        answer: _T
        try:
            if self._over_http:
                return method(request, timeout=timeout, metadata=_METADATA)
            answer, call = method.with_call(request, timeout=timeout, metadata=self._metadata())  # type: ignore[attr-defined]
            self._take_tokens(call)
        except grpc.RpcError as error:
            raise self.explain(error, missing) from error
        return answer

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Over HTTP the channel adds the token itself."""
        tokens = None if self._over_http else self._session.tokens()
        if tokens is None:
            return _METADATA
        return (*_METADATA, (ACCESS, tokens.access), *([(REFRESH, tokens.refresh)] if tokens.refresh else []))

    def _take_tokens(self, call: Any) -> None:
        """New ones come ahead of an answer over gRPC."""
        told = dict(call.initial_metadata() or ())
        if told.get(ACCESS) and told.get(REFRESH):
            self._session.renewed(Tokens(str(told[ACCESS]), str(told[REFRESH])))


class LogStream:
    """One call of StreamLogs: iterate it, or cancel it from another thread."""

    def __init__(self, call: Any, began: Callable[[Any], None] | None) -> None:
        """`began` is told of the call as soon as its headers have come."""
        self._call = call
        self._began = began

    def __iter__(self) -> Iterator[pb.StreamLogsResponse]:
        if self._began is not None:
            self._began(self._call)
        yield from self._call

    def cancel(self) -> None:
        self._call.cancel()


def _open(connection: Connection, session: Session) -> tuple[grpc.Channel, bool]:
    """A channel, and whether it is one over HTTP."""
    tls = None if connection.insecure else ClientTls(connection.root_certificates)
    on_this_machine = connection.address.startswith(_LOOPBACK)  # no proxy leads to it
    target = Target(connection.address, tls, None if on_this_machine else proxy_for(connection.address))
    if speaks_http(target):
        from trellis_kit.http_channel import HttpChannel  # takes its time, and most SuperLinks offer gRPC

        from trellis_cli.bearer import BearerAuth

        return HttpChannel(target, BearerAuth(session)), True
    options = list(_OPTIONS)
    if on_this_machine:
        options.append(("grpc.enable_http_proxy", 0))
    if connection.insecure:
        return grpc.insecure_channel(connection.address, options), False
    roots = None
    if connection.root_certificates is not None:
        try:
            roots = connection.root_certificates.read_bytes()
        except OSError as error:
            raise UsageError(
                f"The root certificates {connection.root_certificates} cannot be read: {error.strerror}."
            ) from error
    return grpc.secure_channel(connection.address, grpc.ssl_channel_credentials(roots), options), False


def explain(error: grpc.RpcError, connection: Connection) -> CliError:
    """A gRPC failure as one sentence. Details may be plain text or JSON (Flower 1.33 on)."""
    code: grpc.StatusCode = error.code()
    details = error.details() or ""
    said = _public_text(details)
    where = f"{connection.address} (from {connection.source})"
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(details, said, connection, where)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"No answer in time from {where}. It may be busy or starting; try again.")
    if code is grpc.StatusCode.UNIMPLEMENTED and not said.strip("."):
        return CliError(
            f"What answers at {connection.address} does not offer this; it may be no SuperLink's Control port."
        )
    if code is grpc.StatusCode.UNIMPLEMENTED and _is_grpc_default(details):
        return CliError(
            f"What answers at {connection.address} does not know this command: either it is another port than the "
            "Control API's (usually 9093), or a SuperLink too old for it (Flower 1.20 and earlier, or 1.37 and later, "
            "speak otherwise)."
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return CliError(
            f"The SuperLink does not know who you are: {said or 'no valid login'}. Log in: `trellis login`."
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return CliError(f"You may not do this: {said or 'the SuperLink refused it'}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return CliError(f"Too much for the SuperLink: {said}")
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS):
        return CliError(f"The SuperLink failed ({code.name}): {said or 'it did not say why'}. Its log says more.")
    return CliError(said or f"The SuperLink refused ({code.name}) and did not say why.")


def _unavailable(details: str, said: str, connection: Connection, where: str) -> CliError:
    lower = details.lower()
    tls = None if connection.insecure else ClientTls(connection.root_certificates)
    if (cause := why(Target(connection.address, tls))) is not None:
        advice = "" if connection.source == "--superlink" else f" The connection is set in {connection.source}."
        if "answers without TLS" in cause:
            how = "add --insecure" if not advice else f"write insecure = true in {connection.source}"
            advice = f" If it shall, {how}."
        # The cause begins with "the ..." or with the address, which is spelled as it is.
        sentence = cause.removeprefix("the ")
        return Unreachable(f"{cause if sentence == cause else f'The {sentence}'}.{advice}")
    if any(word in lower for word in ("resolving", "hostname lookup", "domain name not found")):
        return Unreachable(f"No machine is known as {where}. Is the name right, and is there a network? ({said})")
    if "failed parsing http/2" in lower:
        return Unreachable(
            f"{where} speaks no gRPC. A SuperLink has its Control API on another port than stock's HTTP, usually 9093."
        )
    nobody = ("failed to connect", "connection refused", "dns", "no route", "timeout")
    if any(word in lower for word in nobody):
        return Unreachable(
            f"Nobody answers at {where}. Does a SuperLink run there with its Control API on this port? ({said})"
        )
    return Unreachable(
        f"{connection.address} cannot answer now: {said.rstrip('.') or 'no reason given'}. Try again later."
    )


def _is_grpc_default(details: str) -> bool:
    return details in ("Method not found!", "") or "unknown service" in details.lower()


def _public_text(details: str) -> str:
    """The text for people out of plain details or a JSON body, in both of its spellings (Flower 1.33 on)."""
    try:
        body = json.loads(details)
    except ValueError:
        return details
    if not isinstance(body, dict):
        return details
    text = body.get("public_message") or body.get("detail")
    if not isinstance(text, str):
        return details
    more = body.get("public_details") or body.get("extra")
    return f"{text} {more}" if more else text


def no_node(node_id: int) -> str:
    return f"There is no SuperNode {node_id} at this SuperLink; `trellis supernode ls` lists them."


def left_nothing(run_id: int) -> str:
    return f"Run {run_id} left no files behind; what its ServerApp writes to its folder is kept."


def no_run(run_id: int) -> str:
    return f"There is no run {run_id} on this SuperLink; `trellis ls` lists the runs."
