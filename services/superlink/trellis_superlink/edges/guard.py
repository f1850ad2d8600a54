"""What stands before each handler: who calls, whether they may, and the audit line of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from grpc import StatusCode
from trellis_kit.attempts import ATTEMPTS, Attempts, address_of
from trellis_kit.audit import AuditLog, Entry, Outcome

from trellis_superlink.core.errors import RunOver
from trellis_superlink.core.permissions import OF_ACCOUNTS, Permission
from trellis_superlink.core.principals import NO_ACCOUNT, Principal
from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.permissions import CHANGING, NOTED, RPCS, permission_of
from trellis_superlink.edges.replays import Replayed, Replays
from trellis_superlink.edges.rpc import Call, Service
from trellis_superlink.edges.rpcs import ADAPTER, FLEET
from trellis_superlink.identity.errors import TokenExpired, TokenProblem
from trellis_superlink.identity.provider import Provider
from trellis_superlink.identity.roles import Roles

ACCESS, REFRESH = "flwr-oidc-access-token", "flwr-oidc-refresh-token"
"""Metadata of Flower 1.18-1.36, both ways; from 1.37 on it is `authorization: Bearer`."""

_MAX_REASON: Final = 1000
_MAX_CLIENT: Final = 200

_DENIED = frozenset({StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED})


class Accounts(ABC):
    """How the account that calls is known."""

    @abstractmethod
    async def identify(self, call: Call) -> Principal:
        """TokenProblem (an Unauthenticated), ProviderAway."""


class OneAccount(Accounts):
    """Without login there is one account, which may do everything, as on stock."""

    async def identify(self, call: Call) -> Principal:
        return NO_ACCOUNT


class OidcAccounts(Accounts):
    """Accounts of an OpenID Connect provider. A call that carries a refresh token beside an expired access token is
    given new ones ahead of its answer, which is how command lines over gRPC stay logged in (WIRE.md 3.7)."""

    def __init__(self, provider: Provider, roles: Roles) -> None:
        self._provider = provider
        self._roles = roles

    async def identify(self, call: Call) -> Principal:
        access, refresh = bearer(call) or call.header(ACCESS), call.header(REFRESH)
        if not access:
            raise TokenProblem("The call carries no token.")
        try:
            claims = await self._provider.check(access)
        except TokenExpired:
            if not refresh:
                raise
            tokens = await self._provider.refresh(refresh)
            claims = await self._provider.check(tokens.access)
            await call.announce((ACCESS, tokens.access), (REFRESH, tokens.refresh))
        return Principal.account(claims.subject, claims.name, self._roles.of(claims.roles))


def bearer(call: Call) -> str:
    """The token of the Authorization header, "" where there is none."""
    scheme, _, token = call.header("authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class TooMany(EdgeError):
    """Of the caller's address too much has failed."""

    def __init__(self) -> None:
        super().__init__(StatusCode.UNAVAILABLE, "Too many failed attempts; try again in a minute.")


class Guard:
    """One for all edges. Nodes and executors are known by their handlers, which note who it is in the call."""

    def __init__(self, accounts: Accounts | None = None, audit: AuditLog | None = None) -> None:
        self._accounts = accounts or OneAccount()
        self._audit = audit
        self._attempts = Attempts()  # of people
        self._joining = Attempts()  # of executors: they do not lock out people who share their address, nor the reverse
        self._lines = Attempts()
        self.replays = Replays()

    async def admit(self, service: Service, call: Call) -> None:
        """Returns for a caller who may go on, known as `call.who` where that is an account."""
        permission = permission_of(service.name, call.method)
        if permission is None:
            raise EdgeError(StatusCode.PERMISSION_DENIED, "Nobody may ask this.", 9)
        attempts = self._attempts_of(permission)
        if attempts is not None and attempts.too_many(address_of(call.peer)):
            raise TooMany
        if permission in OF_ACCOUNTS:
            call.who = await self._accounts.identify(call)
            call.note(account=call.who.name)
            if permission not in call.who.may:
                raise EdgeError(
                    StatusCode.PERMISSION_DENIED,
                    f"Your account {call.who.name!r} has no role with the permission {permission}; ask the operator.",
                    9,
                )
        elif call.method == "GetLoginDetails":
            self._attempts.add(address_of(call.peer))
        if self._audit is None:
            return
        if call.method in CHANGING and permission in OF_ACCOUNTS:
            await self._audit.write(self._entry(service, call, Outcome.STARTED))
        call.before_answer(lambda: self._answered(service, call))

    async def _answered(self, service: Service, call: Call) -> None:
        """What was asked for counts, whatever it came in: GrpcAdapter carries calls of Fleet."""
        assert self._audit is not None
        reason = call.ids.get("refused_by_site")
        if reason is not None:  # a site does not let a run's app in: its policy, or a FAB that it cannot use
            self._audit.note(self._entry(service, call, Outcome.DENIED, str(reason)))
        if call.method in CHANGING:
            await self._audit.write(self._entry(service, call, Outcome.COMPLETED))
        elif call.method in NOTED:
            self._audit.note(self._entry(service, call, Outcome.COMPLETED))

    async def refused(self, service: Service, call: Call, problem: EdgeError, error: Exception) -> None:
        """The end of a call that went wrong. What the error says is for the audit log, which may say more than the
        answer. That a run is over denies nobody anything."""
        address = address_of(call.peer)
        permission = permission_of(service.name, call.method)
        denied = problem.status in _DENIED or isinstance(problem, Replayed | TooMany)
        denied = denied and not isinstance(error, RunOver)
        wrong = problem.status is StatusCode.UNAUTHENTICATED or (denied and permission is Permission.LOGIN)
        attempts = self._attempts_of(permission)
        if attempts is not None and wrong and not isinstance(problem, TooMany):
            attempts.add(address)
        if self._audit is None or not (denied or call.method in NOTED):
            return
        reason = str(error)
        if call.who is None:  # anybody can be refused without end, and a full disk would stop the operator
            count = self._lines.add(address)
            if count > ATTEMPTS:
                return
            reason = reason[:_MAX_REASON]
            if count == ATTEMPTS:
                reason += " (What else this address is refused within a minute is left out.)"
        self._audit.note(self._entry(service, call, Outcome.DENIED if denied else Outcome.FAILED, reason))

    def _attempts_of(self, permission: Permission | None) -> Attempts | None:
        """Who shares a count. A SuperNode with a wrong key has none: nobody guesses keys, and it would lock out the
        others of its site."""
        if permission in OF_ACCOUNTS or permission is Permission.LOGIN:
            return self._attempts
        return self._joining if permission is Permission.EXECUTOR else None

    def _entry(self, service: Service, call: Call, outcome: Outcome, reason: str | None = None) -> Entry:
        who = call.who
        ids = call.ids
        name = FLEET if service.name == ADAPTER and call.method in RPCS[FLEET] else service.name
        return Entry(
            action=f"{name.rpartition('.')[2]}.{call.method}",
            outcome=outcome,
            kind="unknown" if who is None else who.kind.value,
            actor_id=None if who is None else who.id,
            description=None if who is None else who.name,
            ip_address=address_of(call.peer),
            run_id=_number(ids.get("run_id")),
            fab_hash=_text(ids.get("fab_hash")),
            reason=None if reason is None else reason[: 2 * _MAX_REASON],
            more={
                "permission": permission_of(name, call.method),
                "node_id": _number(ids.get("node_id")),
                "federation": _text(ids.get("federation")),
                "subject": _text(ids.get("subject")),
                "request_id": call.request_id,
                "client": call.client[:_MAX_CLIENT] or None,
            },
        )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
