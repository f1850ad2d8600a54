"""SuperLinks whose clock is not Keycloak's: its tokens are good for five minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc import StatusCode
from identity_world import World, service_token
from keycloak_server import Keycloak

FAKETIME = "faketime/libfaketimeMT.so.1"


@pytest.mark.parametrize(("minutes", "status"), [(4, "OK"), (-4, "OK"), (10, "expired"), (-10, "from the future")])
def test_a_clock_that_is_wrong(minutes: int, status: str, keycloak: Keycloak, tmp_path: Path) -> None:
    [library] = Path("/usr/lib").glob(f"*/{FAKETIME}")
    clock = {"LD_PRELOAD": str(library), "FAKETIME": f"{minutes:+d}m", "DONT_FAKE_MONOTONIC": "1"}
    with World(tmp_path, keycloak, executor=False, environment=clock) as world:
        found = world.call(service_token(keycloak))
        if status == "OK":
            assert found is StatusCode.OK
            return
        assert found is StatusCode.UNAUTHENTICATED
        assert world.call_http(service_token(keycloak)).headers["www-authenticate"] == "Bearer"
        reasons = [line["reason"] for line in world.audited() if line["status"] == "denied"]
        assert reasons
        assert all(status in reason for reason in reasons), reasons
