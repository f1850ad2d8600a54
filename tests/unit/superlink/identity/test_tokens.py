"""Access tokens against keys made here: what is taken, what is not, and how often the provider is asked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from trellis_superlink.identity.errors import ProviderAway, TokenExpired, TokenProblem
from trellis_superlink.identity.tokens import FRESH, KEPT, PAUSE, Keys, Verifier

ISSUER = "https://login.example.org/realms/trellis"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
MINUTE = 60.0


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, **more}


class Realm:
    """A provider's keys, and how often they were fetched."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.fetched = 0
        self.away = False
        self.clock = 1000.0
        self.found = Keys(self._fetch, lambda: self.clock)

    async def _fetch(self) -> Mapping[str, Any]:
        self.fetched += 1
        if self.away:
            raise ProviderAway("away")
        return {"keys": self.keys}


def verifier(realm: Realm, **more: Any) -> Verifier:
    roles = [("realm_access", "roles"), ("resource_access", "trellis", "roles")]
    return Verifier(ISSUER, frozenset({"trellis"}), roles, realm.found, **more)


def signed(key: Any = RSA, algorithm: str = "RS256", kid: str = "k1", **changes: Any) -> str:
    now = time.time()
    said = {"iss": ISSUER, "sub": "u1", "azp": "trellis", "iat": now, "exp": now + 300, **changes}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm, headers={"kid": kid})


@pytest.fixture
def realm() -> Realm:
    return Realm(jwk(RSA, "k1", alg="RS256", use="sig"), jwk(EC, "k2"), jwk(RSA, "enc", use="enc"))


async def test_what_a_good_token_says(realm: Realm) -> None:
    more: dict[str, Any] = {
        "preferred_username": "alice",
        "realm_access": {"roles": ["a"]},
        "resource_access": {"trellis": {"roles": ["b"]}},
    }
    claims = await verifier(realm).check(signed(**more))
    assert (claims.subject, claims.name, set(claims.roles)) == ("u1", "alice", {"a", "b"})
    assert (await verifier(realm).check(signed(EC, "ES256", "k2"))).name == "u1"
    assert (await verifier(realm).check(signed(azp=None, aud=["x", "trellis"]))).roles == set()
    assert realm.fetched == 1


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"preferred_username": "bob", "name": "alice"}, "bob"),
        ({"name": "alice", "email": "alice@example.org"}, "u1"),  # who calls themselves alice is not alice
        ({"email": "alice@example.org", "email_verified": "true"}, "u1"),
        ({"email": "alice@example.org", "email_verified": True, "client_id": "c"}, "alice@example.org"),
        ({"client_id": "pipeline"}, "pipeline"),
        ({"preferred_username": ["bob"]}, "u1"),
    ],
)
async def test_what_an_account_is_called(said: dict[str, Any], name: str, realm: Realm) -> None:
    assert (await verifier(realm).check(signed(**said))).name == name


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://login.example.org/realms/other"},
        {"azp": "other"},
        {"azp": None, "aud": ["other", 7]},
        {"typ": "ID"},
        {"typ": "Refresh"},
        {"cnf": {"jkt": "x"}},
        {"exp": None},
        {"exp": True},
        {"exp": "soon"},
        {"sub": None},
        {"sub": ""},
        {"key": EC, "algorithm": "ES256"},
        {"algorithm": "PS256"},
        {"kid": "enc"},
        {"kid": "unknown"},
    ],
)
async def test_what_is_not_taken(changes: dict[str, Any], realm: Realm) -> None:
    with pytest.raises(TokenProblem):
        await verifier(realm).check(signed(**changes))


async def test_symmetric_keys_are_none(realm: Realm) -> None:
    secret = "s" * 64
    realm.keys.append({"kty": "oct", "kid": "mac", "k": "c" * 86, "alg": "HS256"})
    for algorithm in ("HS256", "HS512"):
        with pytest.raises(TokenProblem):
            await verifier(realm).check(signed(secret, algorithm, "mac"))
    with pytest.raises(TokenProblem):
        await verifier(realm).check(jwt.encode({"sub": "u1"}, "", "none"))


@pytest.mark.parametrize(
    ("minutes", "good"), [(-10, False), (-4, True), (0, True), (4, True), (10, False)], ids=lambda value: str(value)
)
async def test_a_clock_that_is_wrong(minutes: float, good: bool, realm: Realm) -> None:
    """Tokens of five minutes, just given out."""
    checking = verifier(realm, clock=lambda: time.time() + minutes * MINUTE)
    if good:
        await checking.check(signed())
    else:
        with pytest.raises(TokenProblem):
            await checking.check(signed())


async def test_an_expired_token_is_told_apart(realm: Realm) -> None:
    with pytest.raises(TokenExpired):
        await verifier(realm).check(signed(exp=time.time() - 60))


async def test_made_up_keys_do_not_make_us_ask_each_time(realm: Realm) -> None:
    for number in range(20):
        with pytest.raises(TokenProblem):
            await verifier(realm).check(signed(kid=f"made-up-{number}"))
    assert realm.fetched == 1
    realm.keys.append(jwk(EC, "new"))
    realm.clock += PAUSE + 1
    await verifier(realm).check(signed(EC, "ES256", "new"))
    assert realm.fetched == 2


async def test_keys_outlive_a_provider_that_is_away_for_a_day(realm: Realm) -> None:
    checking = verifier(realm)
    await checking.check(signed())
    realm.away = True
    realm.clock += FRESH + 1
    await checking.check(signed())  # asks behind the caller's back
    await realm.found.close()
    realm.clock += KEPT
    with pytest.raises(ProviderAway):
        await checking.check(signed())
    realm.away = False
    realm.clock += PAUSE + 1
    await checking.check(signed())


async def test_something_else_that_answers_does_not_take_the_keys_away(realm: Realm) -> None:
    """A proxy's friendly page in the provider's place, say."""
    checking = verifier(realm)
    await checking.check(signed())
    realm.keys = []
    realm.clock += PAUSE + 1
    with pytest.raises(TokenProblem):
        await checking.check(signed(kid="unknown"))
    assert realm.fetched == 2
    await checking.check(signed())


async def test_a_key_that_was_withdrawn_is_forgotten(realm: Realm) -> None:
    checking = verifier(realm)
    await checking.check(signed())
    realm.keys = [jwk(EC, "k2")]
    realm.clock += FRESH + 1
    await checking.check(signed(EC, "ES256", "k2"))
    assert realm.found._background is not None
    await realm.found._background
    with pytest.raises(TokenProblem):
        await checking.check(signed())
