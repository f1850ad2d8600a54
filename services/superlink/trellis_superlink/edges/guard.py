"""What stands before each handler: who calls, whether they may, and the audit line of it."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from grpc import StatusCode
from trellis_kit.audit import AuditLog, Entry, Outcome

from trellis_superlink.core.permissions import OF_ACCOUNTS, Permission
from trellis_superlink.core.principals import NO_ACCOUNT, Principal
from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.permissions import CHANGING, NOTED, permission_of
from trellis_superlink.edges.rpc import Call, Service
from trellis_superlink.identity.errors import TokenExpired, TokenProblem
from trellis_superlink.identity.provider import Provider
from trellis_superlink.identity.roles import Roles

ACCESS, REFRESH = "flwr-oidc-access-token", "flwr-oidc-refresh-token"
"""Metadata of Flower 1.18-1.36, both ways; from 1.37 on it is `authorization: Bearer`."""

ATTEMPTS: Final = 60
WINDOW: Final = 60.0
"""So many failed attempts, and logins begun, has one address in so many seconds; then it waits."""
_ADDRESSES: Final = 10_000

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


class Attempts:
    """Counts what failed, by address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._began = clock()

    def add(self, address: str) -> None:
        if len(self._counts) < _ADDRESSES or address in self._counts:
            self._counts[address] = self._counts.get(address, 0) + 1

    def check(self, address: str) -> None:
        """UNAVAILABLE for an address that has had too many."""
        if self._clock() - self._began > WINDOW:
            self._counts.clear()
            self._began = self._clock()
        if self._counts.get(address, 0) >= ATTEMPTS:
            raise EdgeError(StatusCode.UNAVAILABLE, "Too many failed attempts; try again in a minute.")


class Guard:
    """One for all edges. Nodes and executors are known by their handlers, which note who it is in the call."""

    def __init__(self, accounts: Accounts | None = None, audit: AuditLog | None = None) -> None:
        self._accounts = accounts or OneAccount()
        self._audit = audit
        self._attempts = Attempts()

    async def admit(self, service: Service, call: Call) -> None:
        """Returns for a caller who may go on, known as `call.who` where that is an account."""
        permission = permission_of(service.name, call.method)
        if permission is None:
            raise EdgeError(StatusCode.PERMISSION_DENIED, "Nobody may ask this.", 9)
        if _by_people(permission):
            self._attempts.check(address_of(call.peer))
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
        if self._audit is not None and call.method == "PushMessages" and permission is Permission.NODE:
            call.before_answer(lambda: self._site_refused(service, call))
        if self._audit is None or call.method not in NOTED:
            return
        if call.method in CHANGING and permission in OF_ACCOUNTS:
            await self._audit.write(self._entry(service, call, Outcome.STARTED))
        call.before_answer(lambda: self._completed(service, call))

    async def _site_refused(self, service: Service, call: Call) -> None:
        """A site does not let a run's app in: its policy, or a FAB that it cannot use."""
        reason = call.ids.get("refused_by_site")
        if self._audit is not None and reason is not None:
            self._audit.note(self._entry(service, call, Outcome.DENIED, str(reason)))

    async def _completed(self, service: Service, call: Call) -> None:
        assert self._audit is not None
        entry = self._entry(service, call, Outcome.COMPLETED)
        if call.method in CHANGING:
            await self._audit.write(entry)
        else:
            self._audit.note(entry)

    async def refused(self, service: Service, call: Call, problem: EdgeError, reason: str) -> None:
        """The end of a call that went wrong. `reason` is for the audit log, which may say more than the answer."""
        denied = problem.status in _DENIED
        if problem.status is StatusCode.UNAUTHENTICATED and _by_people(permission_of(service.name, call.method)):
            self._attempts.add(address_of(call.peer))
        if self._audit is not None and (denied or call.method in NOTED):
            outcome = Outcome.DENIED if denied else Outcome.FAILED
            self._audit.note(self._entry(service, call, outcome, reason))

    def _entry(self, service: Service, call: Call, outcome: Outcome, reason: str | None = None) -> Entry:
        who = call.who
        ids = call.ids
        return Entry(
            action=f"{service.name.rpartition('.')[2]}.{call.method}",
            outcome=outcome,
            kind="unknown" if who is None else who.kind.value,
            actor_id=None if who is None else who.id,
            description=None if who is None else who.name,
            ip_address=address_of(call.peer),
            run_id=_number(ids.get("run_id")),
            fab_hash=_text(ids.get("fab_hash")),
            reason=reason,
            more={
                "permission": permission_of(service.name, call.method),
                "node_id": _number(ids.get("node_id")),
                "federation": _text(ids.get("federation")),
                "subject": _text(ids.get("subject")),
                "request_id": call.request_id,
                "client": call.client or None,
            },
        )


def _by_people(permission: Permission | None) -> bool:
    """Whether accounts ask this. A site's SuperNode with a wrong key does not lock out who sits behind the same NAT."""
    return permission in OF_ACCOUNTS or permission is Permission.LOGIN


def address_of(peer: str) -> str:
    """The address in what a transport calls its peer: `ipv4:10.0.0.1:4321`, `ipv6:%5B::1%5D:4321`, `http:...`."""
    _, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0]
    return re.sub(r"^(\[|%5B)|(\]|%5D)$", "", host, flags=re.IGNORECASE) or peer


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
