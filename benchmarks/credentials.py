"""What knowing who calls costs on each call: the token of an account, the signature of a SuperNode."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from trellis_superlink.identity.tokens import Keys, Verifier
from trellis_wire.identity import generate_key, sign_headers_grpc, verify_grpc

from benchmarks.measure import Result

CALLS = 2000
_ISSUER = "https://login.example.org/realms/trellis"
_ROLES = (("realm_access", "roles"), ("resource_access", "trellis", "roles"))


def costs() -> Result:
    """Median seconds of each, in one process that does nothing else."""
    return {
        "token_rs256": _token(),
        "signature_p256": _signature("P-256"),
        "signature_p384": _signature("P-384"),
        "calls": CALLS,
        "load": os.getloadavg()[0],
    }


def _token() -> float:
    """An access token as Keycloak signs them by default, from its bytes to name and roles."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "one"}

    async def keys() -> dict[str, object]:
        return {"keys": [public]}

    said = {"iss": _ISSUER, "sub": "u1", "azp": "trellis", "exp": time.time() + 300}
    said |= {"preferred_username": "alice", "realm_access": {"roles": ["trellis-user", "offline_access"]}}
    token = jwt.encode(said, key, "RS256", headers={"kid": "one"})

    async def measured() -> float:
        verifier = Verifier(_ISSUER, frozenset({"trellis"}), _ROLES, Keys(keys))
        taken = []
        for _ in range(CALLS):
            since = time.perf_counter()
            await verifier.check(token)
            taken.append(time.perf_counter() - since)
        return statistics.median(taken)

    return asyncio.run(measured())


def _signature(curve: str) -> float:
    """The metadata of a call, as a stock SuperNode of 1.20 to 1.39 sends it."""
    metadata = sign_headers_grpc(generate_key(curve))  # type: ignore[arg-type]
    return _median(lambda: verify_grpc(metadata))


def _median(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        since = time.perf_counter()
        work()
        taken.append(time.perf_counter() - since)
    return statistics.median(taken)
