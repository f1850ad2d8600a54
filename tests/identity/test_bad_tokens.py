"""Tokens that are none of ours, made from Keycloak's true ones where that is possible, over both transports."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc import StatusCode
from identity_world import SOON, World, service_token
from keycloak_server import Keycloak
from waits import wait_until


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def assembled(header: dict[str, Any], said: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    begun = f"{part(json.dumps(header).encode())}.{part(json.dumps(said).encode())}"
    return f"{begun}.{part(sign(begun.encode()))}"


def taken_apart(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


def unsigned(keycloak: Keycloak, name: str = "none") -> str:
    header, said = taken_apart(service_token(keycloak))
    return assembled({**header, "alg": name}, said, lambda _: b"")


def signed_with_the_public_key(keycloak: Keycloak) -> str:
    """HMAC, and the key is what everybody can fetch: in the three forms that a careless check may take for a secret
    this is the usual one, PEM."""
    header, said = taken_apart(service_token(keycloak))
    [key] = [one for one in keycloak.public_keys() if one["kid"] == header["kid"]]
    public = jwt.PyJWK(key).key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return assembled({**header, "alg": "HS256"}, said, lambda begun: hmac.digest(public, begun, hashlib.sha256))


def signed_with_another_key(keycloak: Keycloak) -> str:
    header, said = taken_apart(service_token(keycloak))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(said, key, "RS256", headers={"kid": header["kid"]})


def with_its_own_key(keycloak: Keycloak) -> str:
    """The header brings the key that it is signed with."""
    _, said = taken_apart(service_token(keycloak))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return jwt.encode(said, key, "RS256", headers={"kid": "mine", "jwk": {**own, "kid": "mine"}})


def with_more_roles(keycloak: Keycloak) -> str:
    """The signature of another text."""
    token = service_token(keycloak)
    header, said = taken_apart(token)
    said["realm_access"]["roles"].append("trellis-admin")
    changed = assembled(header, said, lambda _: b"")
    return changed + token.rpartition(".")[2]


def of_another_realm(keycloak: Keycloak) -> str:
    return service_token(keycloak, "elsewhere", "trellis", keycloak.pipeline_secret)


def for_another_audience(keycloak: Keycloak) -> str:
    return service_token(keycloak, client="another", secret=keycloak.pipeline_secret)


def id_token(keycloak: Keycloak) -> str:
    """Says who somebody is, not what they may ask for."""
    return service_token(keycloak, kind="id_token")


BAD: dict[str, Callable[[Keycloak], str]] = {
    "alg: none": unsigned,
    "alg: NONE": lambda keycloak: unsigned(keycloak, "NONE"),
    "HS256 with the public key": signed_with_the_public_key,
    "another key under the same id": signed_with_another_key,
    "a key of its own in the header": with_its_own_key,
    "roles added": with_more_roles,
    "another realm": of_another_realm,
    "another audience": for_another_audience,
    "an ID token": id_token,
    "no JWT": lambda _: "x.y.z",
}


@pytest.fixture(scope="module")
def others(keycloak: Keycloak) -> None:
    """A second realm with a client of the same name, and a second client of the realm; both with a service account
    that has the admin's role."""
    client = {
        "enabled": True,
        "publicClient": False,
        "secret": keycloak.pipeline_secret,
        "serviceAccountsEnabled": True,
        "standardFlowEnabled": False,
    }
    keycloak.admin().create_realm({"realm": "elsewhere", "enabled": True})
    elsewhere = keycloak.admin("elsewhere")
    elsewhere.create_realm_role({"name": "trellis-admin"})
    for admin, name in ((elsewhere, "trellis"), (keycloak.admin(), "another")):
        made = admin.create_client({**client, "clientId": name})
        user = admin.get_client_service_account_user(made)
        admin.assign_realm_roles(user["id"], [admin.get_realm_role("trellis-admin")])


def test_a_good_token_is_taken(world: World) -> None:
    """Whatever is refused below is refused for what it is."""
    token = service_token(world.keycloak)
    assert world.call(token) is StatusCode.OK
    assert world.call(token, "flwr-oidc-access-token") is StatusCode.OK
    assert world.call_http(token).status_code == 200


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("others")
def test_a_token_that_is_none_of_ours(name: str, world: World) -> None:
    token = BAD[name](world.keycloak)
    before = len(denied(world))
    assert world.call(token) is StatusCode.UNAUTHENTICATED
    assert world.call(token, "flwr-oidc-access-token") is StatusCode.UNAUTHENTICATED
    answer = world.call_http(token)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["detail"] == "Not authenticated"  # and not why
    wait_until(lambda: len(denied(world)) >= before + 3, "the refusals are written", SOON)  # which no answer waits for
    lines = denied(world)[before:]
    assert len(lines) == 3
    assert all(line["reason"] and line["actor"]["ip_address"] == "127.0.0.1" for line in lines)
    assert token not in world.audit_file.read_text()


def test_without_a_token(world: World) -> None:
    assert world.call(None) is StatusCode.UNAUTHENTICATED
    assert world.call_http(None).status_code == 401


def denied(world: World) -> list[dict[str, Any]]:
    return [line for line in world.audited() if line["status"] == "denied" and line["actor"]["kind"] == "unknown"]
