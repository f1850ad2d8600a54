"""The table of roles, the table of rpcs, stock's settings file, and the audit log."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from pathlib import Path

import pytest
from trellis_kit.attempts import address_of
from trellis_kit.audit import AuditLog, AuditUnavailable, Entry, Outcome
from trellis_superlink.core.permissions import OF_ACCOUNTS, Permission
from trellis_superlink.edges import permissions, rpcs
from trellis_superlink.identity.roles import Roles, RolesProblem
from trellis_superlink.identity.stock_file import StockFile, StockFileProblem
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, fleet_pb2


def test_every_rpc_of_every_edge_is_behind_one_permission() -> None:
    """Those that the releases have, and those that our own definitions have; nothing besides."""
    known = {name: set(methods) for name, methods in rpcs.RPCS.items()}
    for file in (control_pb2, fleet_pb2, appio_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            known.setdefault(service.full_name, set()).update(method.name for method in service.methods)
    hosted = {name: methods for name, methods in known.items() if name != "trellis.appio.v1.ClientAppIO"}  # the node's
    assert {name: set(methods) for name, methods in permissions.RPCS.items()} == hosted


def test_our_own_table() -> None:
    roles = Roles.read()
    assert roles.of(["trellis-admin"]) == OF_ACCOUNTS
    assert roles.of([]) == roles.of(["offline_access"]) == frozenset()
    assert Permission.RUNS_START not in roles.of(["trellis-viewer", "trellis-operator"])
    assert Permission.ALL_RUNS_SEE not in roles.of(["trellis-user"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("roles = 1", "roles"),
        ("[roles]\na = ['runs.fly']", "roles.a"),
        ("[roles]\na = ['node']", "no role can give node"),
        ("everybody = ['login']\n[roles]", "everybody: no role can give login"),
        ("rolls = {}", "roles"),
        ("[roles", "no TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_is_none(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "roles.toml").write_text(text)
    with pytest.raises(RolesProblem, match=said):
        Roles.read(tmp_path / "roles.toml")


def test_an_operators_table_takes_ours_place(tmp_path: Path) -> None:
    (tmp_path / "roles.toml").write_text("everybody = ['nodes.see']\n[roles]\nstaff = ['runs.see', 'runs.start']")
    roles = Roles.read(tmp_path / "roles.toml")
    assert roles.of(["staff", "trellis-admin"]) == {Permission.NODES_SEE, Permission.RUNS_SEE, Permission.RUNS_START}


KEYCLOAK = "https://login.example.org/realms/trellis/protocol/openid-connect"


@pytest.mark.parametrize("kind", ["authn", "auth"])
def test_stocks_settings_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "auth.yaml"
    file.write_text(
        f"authentication:\n  {kind}_type: oidc\n  {kind}_url: {KEYCLOAK}/auth/device\n  token_url: {KEYCLOAK}/token\n"
        f"  validate_url: {KEYCLOAK}/userinfo\n  oidc_client_id: flower\n  oidc_client_secret: s\n"
        "authorization:\n  authz_type: noop\n"
    )
    found = StockFile.read(file)
    assert (found.issuer, found.client_id, found.client_secret) == (
        KEYCLOAK.removesuffix("/protocol/openid-connect"),
        "flower",
        "s",
    )


@pytest.mark.parametrize(
    "text",
    [
        "authentication: {authn_type: noop, oidc_client_id: a}",
        "authentication: {authn_type: oidc}",
        "authentication: [",
        "other: {}",
        f"authentication: {{authn_type: oidc, oidc_client_id: a, token_url: '{KEYCLOAK}/t', authn_url: 'https://b/protocol/openid-connect/a'}}",
    ],
)
def test_a_settings_file_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "auth.yaml").write_text(text)
    with pytest.raises(StockFileProblem):
        StockFile.read(tmp_path / "auth.yaml")


def entry(action: str = "Control.StopRun", **more: object) -> Entry:
    return Entry(action, Outcome.COMPLETED, "account", "u1", "alice\nada", "10.0.0.1", **more)  # type: ignore[arg-type]


async def test_lines_are_stocks_and_more_and_only_the_owners(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "audit.jsonl"))
    await asyncio.gather(*(log.write(entry(run_id=number, fab_hash="ab")) for number in range(50)))
    log.note(entry("Control.ListRuns"))
    await log.close()
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(lines) == 51
    first = json.loads(lines[0])
    assert first["actor"] == {
        "actor_id": "u1",
        "description": "alice\nada",
        "ip_address": "10.0.0.1",
        "kind": "account",
    }
    assert first["event"] == {"action": "Control.StopRun", "run_id": 0, "fab_hash": "ab"}
    assert first["status"] == "completed"
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


async def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(AuditUnavailable):
        AuditLog(str(tmp_path / "missing" / "audit.jsonl"))
    log = AuditLog("/dev/full")
    with pytest.raises(AuditUnavailable):
        await log.write(entry())
    await log.close()


async def test_after_half_a_line_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that went down, and of a disk that was full for a while."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"timestamp": "2026-1')
    log = AuditLog(str(path))
    await log.write(entry(run_id=1))
    write = os.write

    def half(file: int, lines: memoryview) -> int:
        monkeypatch.setattr(os, "write", full)
        return write(file, lines[:20])

    def full(file: int, lines: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(AuditUnavailable):
        await log.write(entry(run_id=2))
    monkeypatch.setattr(os, "write", write)
    await log.write(entry(run_id=3))
    await log.write(entry(run_id=4))
    await log.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    assert [json.loads(lines[index])["event"]["run_id"] for index in (1, 3, 4)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4321", "10.0.0.1"),
        ("ipv6:%5B::1%5D:4321", "::1"),
        ("ipv6:[::1]:1", "::1"),
        ("http:10.0.0.1:5", "10.0.0.1"),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address
