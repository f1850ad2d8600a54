"""Access tokens: JWTs signed by the provider, checked here against its published keys (RFC 7519, 7517, 9068)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from trellis_superlink.identity.errors import ProviderAway, TokenExpired, TokenProblem

_log = logging.getLogger(__name__)

ALGORITHMS: Final[Mapping[str, Mapping[str, str]]] = {
    **{name: {"kty": "RSA"} for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")},
    "ES256": {"kty": "EC", "crv": "P-256"},
    "ES384": {"kty": "EC", "crv": "P-384"},
    "ES512": {"kty": "EC", "crv": "P-521"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}
"""What a token may be signed with, and what the key for it looks like. Nothing symmetric: whoever can check such a
signature can make one."""

FRESH: Final = 600.0
"""Seconds after which keys are fetched again, so that one that was withdrawn is soon forgotten."""
KEPT: Final = 24 * 3600.0
"""Seconds that keys are used for while the provider is away."""
PAUSE: Final = 10.0
"""Seconds between two fetches at least: whoever makes up key ids does not make us ask the provider each time."""

EARLY: Final = 300.0
"""Seconds that a token may seem to be from the future: the provider's clock is ahead, which harms nobody."""
LATE: Final = 10.0
"""Seconds that a token is good for after its end."""

MAX_TOKEN: Final = 16 * 1024
"""Characters; Keycloak's have one or two thousand."""


@dataclass(frozen=True)
class Claims:
    """What a token says: whose it is, what they are called, their roles, and until when (Unix seconds)."""

    subject: str
    name: str
    roles: frozenset[str]
    expires_at: float


class Keys:
    """The provider's public keys, by id. `fetch` gives its JWK set; ProviderAway."""

    def __init__(
        self, fetch: Callable[[], Awaitable[Mapping[str, Any]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: Mapping[str, Mapping[str, Any]] = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._fetching = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None

    async def find(self, key_id: str, algorithm: str) -> jwt.PyJWK:
        """The key of this id, for this algorithm. TokenProblem where the provider has none, ProviderAway."""
        if key_id not in self._keys or self._age() > KEPT:
            await self._renew()
        elif self._age() > FRESH and (self._background is None or self._background.done()):
            self._background = asyncio.create_task(self._renew_quietly())  # nobody waits for what they need not
        found = self._keys.get(key_id)
        if found is None:
            raise TokenProblem("The provider has no key of this id.")
        shape = {"alg": algorithm, "use": "sig", **ALGORITHMS[algorithm]}
        if any(name in found and found[name] != value for name, value in shape.items()):
            raise TokenProblem("The key is for something else.")
        try:
            return jwt.PyJWK(dict(found), algorithm)
        except jwt.PyJWTError as error:
            raise TokenProblem(f"The provider's key cannot be used: {error}") from error

    def _age(self) -> float:
        return float("inf") if self._fetched is None else self._clock() - self._fetched

    async def _renew(self) -> None:
        """Fetches them, unless that was tried a moment ago. ProviderAway where there are none to go on with."""
        asked = self._clock()
        async with self._fetching:
            if self._tried is not None and asked - self._tried < PAUSE:  # another has just done it
                if self._age() > KEPT:
                    raise ProviderAway("The identity provider does not answer.")
                return
            self._tried = self._clock()
            try:
                keys = _usable(await self._fetch())
            except ProviderAway as problem:
                if self._age() > KEPT:
                    raise
                _log.warning("The identity provider's keys cannot be fetched, those from before stay: %s", problem)
                return
            self._keys = keys
            self._fetched = self._clock()

    async def _renew_quietly(self) -> None:
        with contextlib.suppress(ProviderAway):
            await self._renew()

    async def close(self) -> None:
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait({self._background})


class Verifier:
    """Checks access tokens. `audiences`: one of them has to be in `aud` or `azp`. `role_claims`: paths to lists of
    roles."""

    def __init__(
        self,
        issuer: str,
        audiences: frozenset[str],
        role_claims: Sequence[Sequence[str]],
        keys: Keys,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        self._audiences = audiences
        self._role_claims = role_claims
        self._keys = keys
        self._clock = clock

    async def check(self, token: str) -> Claims:
        """What the token says. TokenExpired, TokenProblem, ProviderAway."""
        if len(token) > MAX_TOKEN:
            raise TokenProblem("The token is too long.")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise TokenProblem(f"It is no JWT: {error}") from error
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise TokenProblem(f"Signed with {algorithm!r}, which is not accepted.")
        if not isinstance(key_id, str):
            raise TokenProblem("It names no key.")
        key = await self._keys.find(key_id, algorithm)
        try:
            said = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                options={
                    "require": ["iss", "sub", "exp"],
                    # The checks below forgive a clock that is behind more than a token that is over.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                },
            )
        except jwt.PyJWTError as error:
            raise TokenProblem(str(error)) from error
        self._check_purpose(said)
        expires_at = self._check_time(said)
        return Claims(str(said["sub"]), self._name(said), self._roles(said), expires_at)

    def _check_purpose(self, said: Mapping[str, Any]) -> None:
        """Whether it is an access token, and for us."""
        if not isinstance(said["sub"], str) or not said["sub"]:
            raise TokenProblem("It is nobody's.")
        if said.get("typ", "Bearer") != "Bearer":  # Keycloak's ID and logout tokens have another
            raise TokenProblem(f"It is no access token but a token of type {said['typ']!r}.")
        if "cnf" in said:
            raise TokenProblem("It is good together with a key only, of which there is no proof (cnf).")
        audience = said.get("aud", [])
        named = {audience} if isinstance(audience, str) else {one for one in audience if isinstance(one, str)}
        if not self._audiences & (named | {str(said.get("azp", ""))}):
            raise TokenProblem(f"It is for {', '.join(sorted(named)) or 'nobody'}.")

    def _check_time(self, said: Mapping[str, Any]) -> float:
        now = self._clock()
        expires_at = _number(said, "exp")
        if expires_at is None:
            raise TokenProblem("It does not say when it ends.")
        if expires_at + LATE < now:
            raise TokenExpired("It has expired.")
        for claim in ("nbf", "iat"):
            begins = _number(said, claim)
            if begins is not None and begins - EARLY > now:
                raise TokenProblem(
                    f"It is from the future ({claim} is {begins - now:.0f} s ahead); look at the clocks."
                )
        return expires_at

    def _name(self, said: Mapping[str, Any]) -> str:
        """What invitations and sites' policies go by: nothing that users choose as they like."""
        claims = ("preferred_username", *(["email"] if said.get("email_verified") is True else ()), "client_id")
        for claim in claims:
            if isinstance(found := said.get(claim), str) and found:
                return found
        return str(said["sub"])

    def _roles(self, said: Mapping[str, Any]) -> frozenset[str]:
        roles: set[str] = set()
        for path in self._role_claims:
            found: Any = said
            for step in path:
                found = found.get(step) if isinstance(found, dict) else None
            if isinstance(found, list):
                roles.update(one for one in found if isinstance(one, str))
        return frozenset(roles)


def _usable(told: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The keys of a JWK set. ProviderAway for one without any, which is no provider's: something else answered."""
    entries = told.get("keys")
    found = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    keys = {str(one["kid"]): one for one in found if "kid" in one and one.get("kty") != "oct"}
    if not keys:
        raise ProviderAway("The identity provider shows no keys.")
    return keys


def _number(said: Mapping[str, Any], claim: str) -> float | None:
    """A time in the token, None where it has none. TokenProblem for one that is no number."""
    found = said.get(claim)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TokenProblem(f"Its {claim} is no number.")
    return float(found)
