"""`trellis certs`: what it makes, what it keeps, whom it shows to whom."""

from __future__ import annotations

import json
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from trellis_cli.certificates import NETWORK, SERVERAPPS, SITE, Access, Deployment, hosts
from trellis_cli.main import main
from trellis_kit import certificates

ROLES = ["clientapp-1", "clientapp-2", "serverapp", "superlink", "supernode-1", "supernode-2"]


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    folder = tmp_path / "certs"
    assert certs_command("init", folder, "--supernodes", "2", "--namespace", "fl", "--name", "fl.example.org") == 0
    return folder


def certs_command(name: str, folder: Path, *more: str) -> int:
    return main(["certs", name, "--directory", str(folder), *more])


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]]]:
    capsys.readouterr()
    code = certs_command("show", folder, "--format", "json")
    document = json.loads(capsys.readouterr().out)
    return code, {entry["name"]: entry for entry in document["certificates"]}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def accepted(server: Path, ca: Path, name: str, client: Path | None = None, client_ca: Path | None = None) -> bool:
    """Whether both sides of a handshake in memory accept each other."""
    here, there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    here.load_cert_chain(server / "tls.crt", server / "tls.key")
    there.load_verify_locations(ca)
    if client_ca is not None:
        here.verify_mode = ssl.CERT_REQUIRED
        here.load_verify_locations(client_ca)
    if client is not None:
        there.load_cert_chain(client / "tls.crt", client / "tls.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        there.wrap_bio(to_client, to_server, server_hostname=name),
        here.wrap_bio(to_server, to_client, server_side=True),
    ]
    open_ends = list(ends)
    for _ in range(8):
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
    return not open_ends


def test_init_makes_a_folder_for_each_role(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, entries = shown(certs, capsys)
    assert code == 0
    assert sorted(entries) == sorted(["ca", "serverapp-ca", "site-ca", *ROLES])
    assert {entry["state"] for entry in entries.values()} == {"valid"}
    names = entries["superlink"]["names"]
    assert isinstance(names, list)
    assert {"superlink", "superlink.fl.svc.cluster.local", "localhost", "127.0.0.1", "::1", "fl.example.org"} <= {
        *names
    }
    for role in ROLES:
        executors = {"executor-ca.crt"} if role.startswith("super") else set()
        assert {path.name for path in (certs / role).iterdir()} == {"tls.crt", "tls.key", "ca.crt"} | executors


def test_keys_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert certs_command("init", tmp_path / "certs") == 0
    finally:
        os.umask(before)
    keys = list((tmp_path / "certs").rglob("*.key"))
    assert len(keys) == 3 + 2 + 6
    assert {mode(key) for key in keys} == {0o600}
    assert {mode(one) for one in (tmp_path / "certs").rglob("*.crt")} == {0o644}
    assert not list((tmp_path / "certs").rglob(".*"))


def test_each_role_is_accepted_where_it_belongs_and_nowhere_else(certs: Path) -> None:
    superlink, supernode = certs / "superlink", certs / "supernode-1"
    serverapp, clientapp = certs / "serverapp", certs / "clientapp-1"
    superlink_wants, supernode_wants = superlink / "executor-ca.crt", supernode / "executor-ca.crt"
    # Fleet and Control, ServerAppIO, ClientAppIO as they shall be.
    assert accepted(superlink, supernode / "ca.crt", "superlink")
    assert accepted(superlink, serverapp / "ca.crt", "superlink.fl.svc", serverapp, superlink_wants)
    assert accepted(supernode, clientapp / "ca.crt", "supernode-1", clientapp, supernode_wants)
    # A ClientApp executor is none of ServerApps, and the other way round.
    assert not accepted(superlink, certs / "ca.crt", "superlink", clientapp, superlink_wants)
    assert not accepted(supernode, certs / "site-ca.crt", "supernode-1", serverapp, supernode_wants)
    # An executor's certificate serves nobody, under no CA that anybody has.
    for executor in (serverapp, clientapp):
        for ca in ("ca.crt", "serverapp-ca.crt", "site-ca.crt"):
            assert not accepted(executor, certs / ca, executor.name)
    # A server's certificate is no executor's.
    assert not accepted(superlink, certs / "ca.crt", "superlink", superlink, superlink_wants)
    assert not accepted(supernode, certs / "site-ca.crt", "supernode-1", supernode, supernode_wants)
    # One site's SuperNode is not the SuperLink, nor another site's SuperNode.
    assert not accepted(supernode, certs / "ca.crt", "supernode-1")
    assert not accepted(supernode, certs / "site-ca.crt", "supernode-2")
    # Without a certificate, or by another name.
    assert not accepted(superlink, certs / "ca.crt", "superlink", None, superlink_wants)
    assert not accepted(superlink, certs / "ca.crt", "elsewhere")


def test_a_ca_is_never_overwritten(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(certs)
    assert certs_command("init", certs) == 2
    assert "has CAs already" in capsys.readouterr().err
    assert contents(certs) == before
    (certs / "ca.key").unlink()  # taken away to a safe place
    assert certs_command("init", certs) == 2
    assert (certs / "ca.crt").read_bytes() == before[certs / "ca.crt"]


def test_missing_adds_and_keeps(certs: Path) -> None:
    before = contents(certs)
    assert certs_command("init", certs, "--missing", "--supernodes", "3") == 0
    after = contents(certs)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in set(after) - set(before)} == {"supernode-3", "clientapp-3"}


def test_renew_takes_what_expires_soon_and_keeps_names_mode_and_the_rest(certs: Path) -> None:
    old = certificates.read(certs / "supernode-2" / "tls.crt")
    assert certs_command("issue", certs, "supernode-1", "--replace", "--days", "5", "--name", "site.example.org") == 0
    (certs / "supernode-1" / "tls.key").chmod(0o640)
    soon = certificates.read(certs / "supernode-1" / "tls.crt")
    key = (certs / "supernode-1" / "tls.key").read_bytes()
    assert certs_command("renew", certs) == 0
    renewed = certificates.read(certs / "supernode-1" / "tls.crt")
    assert renewed.names == soon.names
    assert "site.example.org" in renewed.names
    assert renewed.not_after - soon.not_after > timedelta(days=300)
    assert mode(certs / "supernode-1" / "tls.key") == 0o640
    assert (certs / "supernode-1" / "tls.key").read_bytes() != key
    assert certificates.read(certs / "supernode-2" / "tls.crt") == old
    assert accepted(certs / "supernode-1", certs / "site-ca.crt", "site.example.org")
    assert certs_command("renew", certs, "nobody-1") == 2


def test_keys_can_be_for_the_containers_user(tmp_path: Path) -> None:
    owner = f"{os.geteuid()}:{os.getegid()}" if os.geteuid() else "49999:49998"
    assert certs_command("init", tmp_path / "c", "--owner", owner, "--key-mode", "440") == 0
    found = (tmp_path / "c" / "superlink" / "tls.key").stat()
    assert f"{found.st_uid}:{found.st_gid}" == owner
    assert mode(tmp_path / "c" / "superlink" / "tls.key") == 0o440
    assert mode(tmp_path / "c" / "ca.key") == 0o600
    assert certs_command("renew", tmp_path / "c", "--all") == 0
    found = (tmp_path / "c" / "superlink" / "tls.key").stat()
    assert (f"{found.st_uid}:{found.st_gid}", stat.S_IMODE(found.st_mode)) == (owner, 0o440)


def test_show_tells_what_is_wrong(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = Deployment(certs)
    deployment.issue("serverapp", ["serverapp"], days=10)
    (certs / "clientapp-1" / "tls.key").write_bytes((certs / "clientapp-2" / "tls.key").read_bytes())
    code, entries = shown(certs, capsys)
    assert code == 1
    assert entries["serverapp"]["state"] == "expiring"
    assert entries["clientapp-1"]["state"] == "broken"
    assert "key of another certificate" in str(entries["clientapp-1"]["problem"])
    assert entries["clientapp-2"]["state"] == "valid"
    later = datetime.now(UTC) + timedelta(days=11)
    assert {entry.name: entry.state(later) for entry in deployment.entries()}["serverapp"] == "expired"
    assert certs_command("show", certs) == 1
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["NAME", "USE", "ISSUER", "EXPIRES", "STATE", "NAMES"]
    assert "(9 days)" in table


def test_one_of_another_ca_is_shown_as_broken(certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs_command("init", tmp_path / "other", "--supernodes", "1") == 0
    for file in ("tls.crt", "tls.key"):
        (certs / "superlink" / file).write_bytes((tmp_path / "other" / "superlink" / file).read_bytes())
    code, entries = shown(certs, capsys)
    assert (code, entries["superlink"]["state"]) == (1, "broken")


def test_server_and_sites_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, site = tmp_path / "server", tmp_path / "site"
    assert certs_command("init", server, "--only", "server") == 0
    assert Deployment(server).roles() == ["serverapp", "superlink"]
    assert certs_command("init", site, "--only", "site", "--supernodes", "1") == 2
    assert "--network-ca" in capsys.readouterr().err
    ca = str(server / "ca.crt")
    assert certs_command("init", site, "--only", "site", "--supernodes", "1", "--network-ca", ca) == 0
    assert Deployment(site).roles() == ["clientapp-1", "supernode-1"]
    assert Deployment(site).has(SITE)
    assert not Deployment(site).has(SERVERAPPS)
    assert Deployment(site).has(NETWORK)  # its certificate; there is no key
    assert accepted(server / "superlink", site / "supernode-1" / "ca.crt", "superlink")
    assert certs_command("issue", site, "superlink") == 2
    assert "where that CA's key is" in capsys.readouterr().err
    leaf = str(server / "superlink" / "tls.crt")
    assert certs_command("init", tmp_path / "x", "--only", "site", "--network-ca", leaf) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["issue", "gateway"], "no role"),
        (["issue", "supernode-1/.."], "no role"),
        (["issue", "superlink"], "--replace"),
        (["issue", "supernode-9", "--name", "a b"], "neither a host name nor an address"),
        (["issue", "supernode-9", "--owner", "me"], "--owner"),
        (["renew", "--within", "0"], "expected a number of days"),
        (["init", "--supernodes", "-1"], "supernodes"),
    ],
)
def test_wrong_words_are_told(arguments: list[str], told: str, certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(certs)
    assert certs_command(arguments[0], certs, *arguments[1:]) == 2
    assert told in capsys.readouterr().err
    assert contents(certs) == before


def test_nothing_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "renew"):
        assert certs_command(command, tmp_path / "none") == 2
        assert "certs init" in capsys.readouterr().err


def test_names_of_a_role() -> None:
    assert hosts("clientapp-1", ["fl"]) == ["clientapp-1"]
    assert hosts("superlink", []) == ["superlink", "localhost", "127.0.0.1", "::1"]
    assert "supernode.fl.svc" in hosts("supernode-4", ["fl"])


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """A link in the way is not written through, and what was there stays where the new one cannot be made."""
    deployment = Deployment(tmp_path / "certs", Access())
    for authority in (NETWORK, SERVERAPPS, SITE):
        deployment.make_authority(authority, 30)
    deployment.issue("superlink", ["superlink"], 10)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "certs" / "superlink" / ".tls.key.new").symlink_to(outside)
    deployment.renew("superlink", 20)
    assert outside.read_text() == "mine"
    assert accepted(tmp_path / "certs" / "superlink", tmp_path / "certs" / "ca.crt", "superlink")
