"""The OpenID Connect provider as the SuperLink sees it: discovery, device logins (RFC 8628), refreshing, keys."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from trellis_superlink.identity.errors import LoginRefused, ProviderAway, TokenProblem
from trellis_superlink.identity.tokens import Claims, Keys, Verifier

_log = logging.getLogger(__name__)

_SECONDS: Final = 10.0
"""What an answer of the provider may take."""
_DEVICE_CODE: Final = "urn:ietf:params:oauth:grant-type:device_code"
_KEYCLOAK_ROLES: Final = ("realm_access", "roles")

REMEMBERED: Final = 30.0
"""Seconds that the tokens a refresh brought are given out again: a command line may ask several times at once with
the same refresh token, and a provider may take each only once."""
_MOST = 10_000
"""How many logins and refreshes are remembered at most."""


@dataclass(frozen=True)
class ProviderConfig:
    """`issuer`: as tokens and browsers have it. `internal_url`: where the SuperLink reaches it, if elsewhere.

    `audiences`: who a token may be for besides the client. `roles_claim`: the dotted path to the roles, None for where
    Keycloak has them (realm roles, and those of the client).
    """

    issuer: str
    client_id: str
    client_secret: str | None = None
    internal_url: str | None = None
    scope: str = "openid"
    audiences: frozenset[str] = frozenset()
    roles_claim: str | None = None
    ca_certfile: Path | None = None


@dataclass(frozen=True)
class DeviceLogin:
    """A login that waits for its user: where they go, and how often to ask; times in seconds."""

    device_code: str
    verification_uri: str
    expires_in: int
    interval: int


@dataclass(frozen=True)
class Tokens:
    access: str
    refresh: str


@dataclass
class _Pace:
    """How often the provider may be asked about a device login."""

    interval: float
    next_at: float
    over_at: float


class Provider:
    """One provider. `clock` counts seconds, `now` is Unix time."""

    def __init__(
        self,
        config: ProviderConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._clock = clock
        self._issuer = config.issuer.rstrip("/")
        self._base = (config.internal_url or config.issuer).rstrip("/")
        verify: ssl.SSLContext | bool = True
        if config.ca_certfile is not None:
            verify = ssl.create_default_context(cafile=str(config.ca_certfile))
        self._http = httpx.AsyncClient(verify=verify, timeout=_SECONDS, follow_redirects=False)
        self._found: Mapping[str, Any] | None = None
        self._paces: dict[str, _Pace] = {}
        self._refreshed: dict[bytes, tuple[float, asyncio.Task[Tokens]]] = {}
        self._keys = Keys(self._fetch_keys, clock)
        roles = [_KEYCLOAK_ROLES, ("resource_access", config.client_id, "roles")]
        if config.roles_claim is not None:
            roles = [tuple(config.roles_claim.split("."))]
        self._verifier = Verifier(config.issuer, config.audiences | {config.client_id}, roles, self._keys, now)

    async def check(self, access_token: str) -> Claims:
        """What the token says. TokenExpired, TokenProblem, ProviderAway."""
        return await self._verifier.check(access_token)

    async def begin_login(self) -> DeviceLogin:
        """ProviderAway."""
        answer = await self._post("device_authorization_endpoint", {"scope": self._config.scope})
        told = _json(answer)
        if answer.status_code != 200:
            _log.error("The identity provider begins no login: %s", _problem(told, answer))
            raise ProviderAway("The identity provider begins no login; the SuperLink's log says why.")
        code, address = told.get("device_code"), told.get("verification_uri_complete") or told.get("verification_uri")
        if not isinstance(code, str) or not isinstance(address, str):
            raise ProviderAway("The identity provider's answer names no device code or no page.")
        login = DeviceLogin(
            code, self._for_browsers(address), _whole(told.get("expires_in"), 600), _whole(told.get("interval"), 5)
        )
        self._forget()
        if len(self._paces) >= _MOST:
            raise ProviderAway("Too many logins are under way.")
        now = self._clock()
        self._paces[code] = _Pace(float(login.interval), now, now + login.expires_in)
        return login

    async def finish_login(self, device_code: str) -> Tokens | None:
        """The tokens once the user has agreed; None before. LoginRefused, ProviderAway."""
        now = self._clock()
        pace = self._paces.get(device_code)
        if pace is None or pace.over_at < now:
            raise LoginRefused("This login has expired or never began; log in again.")
        if now < pace.next_at:  # the provider would answer slow_down, and wait longer each time
            return None
        pace.next_at = now + pace.interval * 0.8  # a command line's own interval is never exact
        answer = await self._post("token_endpoint", {"grant_type": _DEVICE_CODE, "device_code": device_code})
        told = _json(answer)
        if answer.status_code == 200:
            self._paces.pop(device_code, None)
            return _tokens(told)
        match told.get("error"):
            case "authorization_pending":
                return None
            case "slow_down":
                pace.interval += 5.0
                pace.next_at = now + pace.interval
                return None
            case "access_denied":
                raise LoginRefused("The login was denied.")
            case "expired_token":
                raise LoginRefused("The login took too long; log in again.")
        _log.warning("The identity provider ended a login: %s", _problem(told, answer))
        raise LoginRefused("The identity provider ended this login; log in again.")

    async def refresh(self, refresh_token: str) -> Tokens:
        """New tokens for a refresh token. TokenProblem when the session is over, ProviderAway."""
        digest = hashlib.sha256(refresh_token.encode()).digest()
        now = self._clock()
        known = self._refreshed.get(digest)
        if known is None or known[0] + REMEMBERED < now or (known[1].done() and known[1].exception() is not None):
            self._forget()
            if len(self._refreshed) >= _MOST:
                raise ProviderAway("Too many sessions are refreshed at once.")
            known = (now, asyncio.create_task(self._refresh(refresh_token)))
            self._refreshed[digest] = known
        return await asyncio.shield(known[1])

    async def _refresh(self, refresh_token: str) -> Tokens:
        answer = await self._post("token_endpoint", {"grant_type": "refresh_token", "refresh_token": refresh_token})
        told = _json(answer)
        if answer.status_code != 200:
            raise TokenProblem(f"The session is over: {_problem(told, answer)}")
        return _tokens(told, refresh_token)

    async def close(self) -> None:
        await self._keys.close()
        tasks = [task for _, task in self._refreshed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    # ---- how the provider is spoken to

    async def _post(self, endpoint: str, form: Mapping[str, str]) -> httpx.Response:
        address = await self._endpoint(endpoint)
        form = {**form, "client_id": self._config.client_id}
        if self._config.client_secret is not None:
            form["client_secret"] = self._config.client_secret
        return await self._asked(self._http.build_request("POST", address, data=form))

    async def _asked(self, request: httpx.Request) -> httpx.Response:
        try:
            answer = await self._http.send(request)
        except httpx.HTTPError as error:
            _log.warning("The identity provider does not answer: %s %s", request.url, error or type(error).__name__)
            raise ProviderAway("The identity provider does not answer; try again later.") from error
        if answer.status_code >= 500 or answer.is_redirect:
            _log.warning("The identity provider answers %s with status %d", request.url, answer.status_code)
            raise ProviderAway("The identity provider cannot answer now; try again later.")
        return answer

    async def _fetch_keys(self) -> Mapping[str, Any]:
        answer = await self._asked(self._http.build_request("GET", await self._endpoint("jwks_uri")))
        if answer.status_code != 200:
            raise ProviderAway(f"The identity provider shows no keys (status {answer.status_code}).")
        return _json(answer)

    async def _endpoint(self, name: str) -> str:
        """From the provider's own description, which is read once (OpenID Connect Discovery 1.0)."""
        if self._found is None:
            address = f"{self._base}/.well-known/openid-configuration"
            answer = await self._asked(self._http.build_request("GET", address))
            told = _json(answer)
            if answer.status_code != 200 or told.get("issuer") != self._config.issuer:
                _log.error("%s describes the issuer %r, not %r", address, told.get("issuer"), self._config.issuer)
                raise ProviderAway("The identity provider is another than the one that was set (--oidc-issuer).")
            self._found = told
        found = self._found.get(name)
        if not isinstance(found, str):
            raise ProviderAway(f"The identity provider has no {name}.")
        return self._for_us(found)

    def _for_us(self, address: str) -> str:
        return self._base + address[len(self._issuer) :] if address.startswith(self._issuer + "/") else address

    def _for_browsers(self, address: str) -> str:
        return self._issuer + address[len(self._base) :] if address.startswith(self._base + "/") else address

    def _forget(self) -> None:
        """What is over of what is remembered."""
        now = self._clock()
        self._paces = {code: pace for code, pace in self._paces.items() if pace.over_at >= now}
        self._refreshed = {
            key: (at, task) for key, (at, task) in self._refreshed.items() if at + REMEMBERED >= now or not task.done()
        }


def _json(answer: httpx.Response) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError):
        told = answer.json()
        if isinstance(told, dict):
            return told
    return {}


def _problem(told: Mapping[str, Any], answer: httpx.Response) -> str:
    """For the log and for people: the error's name and text, which hold no secret (RFC 6749, 5.2)."""
    text = " ".join(str(told[name]) for name in ("error", "error_description") if name in told)
    return text[:200] or f"status {answer.status_code}"


def _tokens(told: Mapping[str, Any], refresh_token: str = "") -> Tokens:
    access, refresh = told.get("access_token"), told.get("refresh_token", refresh_token)
    if not isinstance(access, str) or not isinstance(refresh, str) or not access or not refresh:
        raise ProviderAway("The identity provider gives no refresh token; it has to, for command lines to go on.")
    return Tokens(access, refresh)


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and 0 < value < 86_400 else otherwise
