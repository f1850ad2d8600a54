"""The program as a process: what it refuses to start with, TLS, and how it ends."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from edge_world import Executor, StockNode, refusal
from grpc import StatusCode
from trellis_wire.pb.appio.appio_pb2_grpc import ServerAppIOStub
from trellis_wire.pb.edge import control_pb2
from trellis_wire.pb.edge.control_pb2_grpc import ControlStub
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub

PORTS = [f"--{name}-api-address=127.0.0.1:0" for name in ("serverappio", "fleet", "control")] + ["--port=0"]


async def run(*argv: str) -> Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trellis_superlink.main", *argv), stderr=PIPE, env=environment
    )


async def started(*argv: str) -> tuple[Process, dict[str, str]]:
    process = await run("--log-format", "json", *PORTS, *argv)
    assert process.stderr is not None
    addresses: dict[str, str] = {}
    while True:
        line = json.loads(await asyncio.wait_for(process.stderr.readline(), 30))
        if "listener" in line:
            addresses[line["listener"]] = line["address"]
        if "is ready" in line["message"]:
            return process, addresses


def metrics(address: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certfile, keyfile = folder / "cert.pem", folder / "key.pem"
    certfile.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    keyfile.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certfile, keyfile


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "--insecure"),
        (["--insecure", "--ssl-certfile", "/x", "--ssl-keyfile", "/y"], "not both"),
        (["--ssl-certfile", "/does/not/exist", "--ssl-keyfile", "/y", "--appio-insecure"], "/does/not/exist"),
        (["--ssl-certfile", "/x", "--ssl-keyfile", "/y"], "give --executor-ca-certfile"),
        (["--insecure", "--appio-certfile", "/x"], "belong together"),
        (["--insecure", "--appio-certfile", "/x", "--appio-keyfile", "/y"], "give --executor-ca-certfile"),
        (["--insecure", "--executor-ca-certfile", "/x"], "needs --appio-certfile"),
        (["--insecure", "--isolation", "subprocess", "--executor-ca-certfile", "/x"], "the only executor"),
        (["--insecure", "--fleet-api-address", "nonsense"], "host:port"),
        (["--insecure", "--isolation", "docker"], "--isolation"),
        (["--insecure", "--oidc-issuer", "https://login.example/realms/a"], "Login needs TLS"),
    ],
)
async def test_what_it_does_not_start_with(argv: list[str], told: str) -> None:
    process = await run(*PORTS, *argv)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert told in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_a_database_or_folder_that_it_cannot_use_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database " * 500)
    for database, storage, told in (
        ("file", "objects", "file is no database of Trellis"),
        ("file/db", "objects", "file: "),
        ("db", "file/objects", "file/objects: Not a directory"),
    ):
        argv = ["--insecure", "--database", str(tmp_path / database), "--storage-dir", str(tmp_path / storage)]
        process = await run(*PORTS, *argv)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert told in errors.decode()
        assert "Traceback" not in errors.decode()


async def test_a_second_one_on_a_port_or_a_database_is_told_so(tmp_path: Path) -> None:
    argv = ["--insecure", "--database", str(tmp_path / "db")]
    process, addresses = await started(*argv)
    try:
        second = await run(*PORTS, *argv)
        _, errors = await asyncio.wait_for(second.communicate(), 30)
        assert (second.returncode, f"another SuperLink uses {tmp_path / 'db'}" in errors.decode()) == (1, True)
        taken = ["--insecure", "--database", str(tmp_path / "other"), "--control-api-address", addresses["control"]]
        third = await run("--log-format", "json", *PORTS, *taken)
        _, errors = await asyncio.wait_for(third.communicate(), 30)
        assert third.returncode == 2
        said = [json.loads(line)["message"] for line in errors.decode().splitlines()]  # and nothing else
        assert "Cannot listen" in said[-1]
    finally:
        process.terminate()
        await process.communicate()


async def test_a_database_that_is_taken_away_is_told_to_peers_and_operator(tmp_path: Path) -> None:
    path, away = tmp_path / "db", tmp_path / "away"
    process, addresses = await started("--insecure", "--database", str(path))
    channel = grpc.aio.insecure_channel(addresses["fleet"])
    try:
        path.rename(away)
        status, details = await refusal(StockNode(FleetStub(channel)).join())
        assert (status, "deleted, moved or replaced" in details) == (StatusCode.UNAVAILABLE, True)
        away.rename(path)
        assert await StockNode(FleetStub(channel)).join()
    finally:
        await channel.close(None)
        process.terminate()
        _, errors = await process.communicate()
    said = [json.loads(line) for line in errors.decode().splitlines()]
    assert any(one["level"] == "ERROR" and f"{path} was deleted" in one["message"] for one in said)
    assert any(one["level"] == "WARNING" and "RegisterNode refused" in one["message"] for one in said)


async def test_tls_on_fleet_and_control(tmp_path: Path) -> None:
    certfile, keyfile = certificate(tmp_path)
    tls = ("--ssl-certfile", str(certfile), "--ssl-keyfile", str(keyfile), "--appio-insecure")
    process, addresses = await started(*tls)
    try:
        credentials = grpc.ssl_channel_credentials(certfile.read_bytes())
        secure = {
            name: grpc.aio.secure_channel("localhost:" + addresses[name].rpartition(":")[2], credentials)
            for name in ("fleet", "control")
        }
        assert await StockNode(FleetStub(secure["fleet"])).join()
        listed = await ControlStub(secure["control"]).ListNodes(control_pb2.ListNodesRequest())
        assert len(listed.nodes_info) == 1
        plain = grpc.aio.insecure_channel(addresses["fleet"])
        status, _ = await refusal(StockNode(FleetStub(plain)).join())
        assert status is StatusCode.UNAVAILABLE
        for channel in (*secure.values(), plain):
            await channel.close(None)
    finally:
        process.terminate()
        await process.communicate()


async def test_sigterm_answers_what_is_held_and_ends_in_order(tmp_path: Path) -> None:
    process, addresses = await started("--insecure", "--database", str(tmp_path / "db"), "--ops-address", "127.0.0.1:0")
    channel = grpc.aio.insecure_channel(addresses["fleet"])
    interior = grpc.aio.insecure_channel(addresses["serverappio"])
    node = StockNode(FleetStub(channel))
    await node.join()
    executor = Executor(ServerAppIOStub(interior))
    await executor.attend()
    pull = asyncio.create_task(node.pull())
    async with asyncio.timeout(10):
        while 'trellis_held_calls{surface="fleet"} 1.0' not in await asyncio.to_thread(metrics, addresses["ops"]):
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert not (await asyncio.wait_for(pull, 5)).messages_list
    with pytest.raises(Exception, match="UNAVAILABLE"):
        await executor.order()
    await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0
    for one in (channel, interior):
        await one.close(None)


async def test_kill_and_restart_on_the_same_database(tmp_path: Path) -> None:
    process, addresses = await started("--insecure", "--database", str(tmp_path / "db"))
    channel = grpc.aio.insecure_channel(addresses["fleet"])
    node = StockNode(FleetStub(channel))
    await node.join()
    process.kill()
    await process.communicate()
    again = ["--insecure", "--database", str(tmp_path / "db"), "--fleet-api-address", addresses["fleet"]]
    process, _ = await started(*again)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await node.heartbeat()
                    break
                except grpc.aio.AioRpcError as error:  # as a stock node: the same again while nobody is there
                    assert error.code() is StatusCode.UNAVAILABLE  # noqa: PT017
                    await asyncio.sleep(0.1)
    finally:
        process.terminate()
        await process.communicate()
        await channel.close(None)
