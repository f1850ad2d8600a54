"""The SuperNode's program: settings in, ledger open, ports up, work until asked to stop."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import sys
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from trellis_kit import logs
from trellis_kit.federation import find_program
from trellis_kit.grpc_server import GrpcServer
from trellis_kit.isolation import Isolation, ProcessIsolation, SubprocessIsolation
from trellis_kit.lifecycle import Fatal, Stop, run_service
from trellis_kit.ops import OpsServer
from trellis_kit.processes import make_non_dumpable
from trellis_kit.settings import load, split_address
from trellis_kit.tls import ClientTls, ServerTls, open_channel
from trellis_wire.config import parse_config_args
from trellis_wire.identity import KeyProblem, generate_key, load_private_key, private_pem
from trellis_wire.pb.appio import appio_pb2_grpc

from trellis_supernode.appio import ClientAppIO, StockExecutors
from trellis_supernode.fleet import FleetClient
from trellis_supernode.ledger import Ledger
from trellis_supernode.metrics import Metrics
from trellis_supernode.node import Node
from trellis_supernode.settings import REST_REFUSED, STOCK_FLAGS, SupernodeSettings

_log = logging.getLogger(__name__)

PROG = "trellis-supernode"


def node_key(settings: SupernodeSettings) -> ec.EllipticCurvePrivateKey:
    """The operator's key, or this node's own: made once, kept in the state directory. Raises Fatal."""
    try:
        if settings.auth_supernode_private_key is not None:
            return load_private_key(settings.auth_supernode_private_key)
        path = settings.state_dir / "node.key"
        if path.exists():
            return load_private_key(path)
    except KeyProblem as error:
        raise Fatal(str(error)) from error
    key = generate_key("P-256")
    temporary = path.with_suffix(".part")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(private_pem(key))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return key


def _tls(settings: SupernodeSettings) -> ClientTls | None:
    if settings.insecure:
        if settings.root_certificates is not None:
            raise Fatal("Give either --insecure or --root-certificates, not both.")
        return None
    if settings.root_certificates is None:
        raise Fatal(
            f"Neither TLS nor --insecure is set for --superlink {settings.superlink}. Give --root-certificates, or "
            "--insecure where everybody on the network is trusted."
        )
    return ClientTls(settings.root_certificates)


def _isolation(settings: SupernodeSettings, address: str) -> Isolation:
    if settings.isolation == "process":
        return ProcessIsolation(
            f"Start one: trellis-clientapp --insecure --clientappio-api-address {address} (image trellis/clientapp)"
        )

    def argv() -> Sequence[str]:
        found = [find_program("trellis-clientapp"), "--insecure", "--clientappio-api-address", address]
        found += ["--slots", str(settings.executor_slots), "--grace", str(settings.grace)]
        if settings.guest_python is not None:
            found += ["--guest-python", str(settings.guest_python)]
        return found

    return SubprocessIsolation(argv)


def _reachable(bound: str) -> str:
    host, port = split_address(bound)
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(settings: SupernodeSettings, stop: Stop) -> None:
    """One SuperNode from its start to its end."""
    tls = _tls(settings)
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Fatal(f"The state directory {settings.state_dir} cannot be made: {error.strerror}.") from error
    key = node_key(settings)
    ledger = Ledger(settings.state_dir / "node.db")
    try:
        kept = await ledger.open()
        secret = await ledger.get("token-secret", lambda: secrets.token_bytes(32))
    except sqlite3.Error as error:
        raise Fatal(
            f"The state in {settings.state_dir} cannot be used ({error}); does another SuperNode use this directory?"
        ) from error
    appio_tls = None
    if settings.ssl_certfile is not None and settings.ssl_keyfile is not None:
        appio_tls = ServerTls(settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_ca_certfile)
    server = GrpcServer("clientappio", settings.appio_address, appio_tls)
    metrics = Metrics()
    channel = open_channel(settings.superlink, tls)
    fleet = FleetClient(channel, key, max_retries=settings.max_retries, max_wait=settings.max_wait_time)
    isolation = _isolation(settings, _reachable(server.bound))
    node_config = parse_config_args([settings.node_config] if settings.node_config else [])
    node = Node(fleet, ledger, settings.state_dir, node_config, isolation, metrics)
    await node.open(kept, secret)
    appio_pb2_grpc.add_ClientAppIOServicer_to_server(ClientAppIO(node, ledger, settings.join_token), server.server)
    server.server.add_generic_rpc_handlers((StockExecutors(),))

    async def ready() -> str | None:
        if stop.requested:
            return "The SuperNode stops."
        return None if fleet.reachable else f"The SuperLink at {settings.superlink} does not answer."

    ops = OpsServer(settings.ops_address, ready, metrics.registry)
    extra = None
    if settings.health_server_address is not None:
        extra = GrpcServer("health", settings.health_server_address, None)
    try:
        await server.start()
        await ops.start()
        if extra is not None:
            await extra.start()
        await isolation.start()
        with logs.bound():
            await node.run(stop, register=settings.auth_supernode_private_key is None)
    finally:
        await isolation.stop(max(1.0, stop.remaining()))
        await server.stop(0.5)
        if extra is not None:
            await extra.stop(0.5)
        await ops.stop()
        await channel.close(None)
        await ledger.close()
    _log.info("The SuperNode ended in order")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `trellis-supernode`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--rest" in arguments:
        print(f"{PROG}: {REST_REFUSED}.", file=sys.stderr)
        sys.exit(2)
    settings = load(SupernodeSettings, prog=PROG, argv=arguments, stock_flags=STOCK_FLAGS)
    logs.setup("supernode", level=settings.log_level)
    make_non_dumpable()

    async def run(stop: Stop) -> None:
        await serve(settings, stop)

    sys.exit(run_service(run, grace=settings.grace))


if __name__ == "__main__":
    main()
