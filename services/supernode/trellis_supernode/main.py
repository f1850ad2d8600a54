"""The SuperNode's program: settings in, ledger open, ports up, work until asked to stop."""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from trellis_kit import handshakes, logs, memory, traced  # noqa: F401  (traced: loads gRPC)
from trellis_kit.audit import AuditLog, AuditUnavailable
from trellis_kit.federation import StartProblem, find_program
from trellis_kit.grpc_server import GrpcServer
from trellis_kit.http_channel import EdgeChannel
from trellis_kit.isolation import Isolation, ProcessIsolation, SubprocessIsolation
from trellis_kit.lifecycle import Fatal, Stop, run_service
from trellis_kit.ops import OpsServer
from trellis_kit.probe import Target
from trellis_kit.processes import make_non_dumpable
from trellis_kit.renewable import Renewable
from trellis_kit.settings import load, reachable, split_address
from trellis_kit.tls import ClientTls, ServerTls, interior_tls, proxy_for
from trellis_wire.config import parse_config_args

from trellis_supernode.appio import ClientAppIO, StockExecutors
from trellis_supernode.fleet import CHANNEL_OPTIONS, FleetClient
from trellis_supernode.identity import node_key
from trellis_supernode.ledger import Kept, Ledger
from trellis_supernode.metrics import Metrics
from trellis_supernode.node import Node
from trellis_supernode.policy import Gate, Policy, PolicyProblem
from trellis_supernode.reply_filter import FilterProblem, ReplyFilter
from trellis_supernode.session import Session
from trellis_supernode.settings import REST_REFUSED, STOCK_FLAGS, SupernodeSettings

_log = logging.getLogger(__name__)

PROG = "trellis-supernode"


def _fleet_tls(settings: SupernodeSettings) -> ClientTls | None:
    if settings.insecure:
        if settings.root_certificates is not None:
            raise Fatal("Give either --insecure or --root-certificates, not both.")
        if settings.auth_supernode_private_key is not None:
            _log.warning("--auth-supernode-private-key with --insecure: whoever is on the way can act as this node")
        return None
    if settings.root_certificates is None:
        raise Fatal(
            f"Neither TLS nor --insecure is set for --superlink {settings.superlink}. Give --root-certificates, or "
            "--insecure where everybody on the network is trusted."
        )
    return ClientTls(settings.root_certificates)


def _appio_tls(settings: SupernodeSettings) -> ServerTls | None:
    if settings.appio_insecure and settings.ssl_certfile is not None:
        raise Fatal("Give either --appio-insecure or --ssl-certfile, not both.")
    return interior_tls(
        insecure=settings.insecure or settings.appio_insecure or settings.only_own_executor,
        certfile=settings.ssl_certfile,
        keyfile=settings.ssl_keyfile,
        client_ca=settings.executor_ca_certfile,
        token=settings.join_token is not None or settings.isolation == "subprocess",
        flags="--ssl-certfile and --ssl-keyfile",
    )


def _executor(settings: SupernodeSettings, address: str, token_file: Path) -> Sequence[str]:
    """How this node starts its own executor. Raises Fatal where that cannot work."""
    try:
        argv = [find_program("trellis-clientapp"), "--clientappio-api-address", address]
    except StartProblem as error:
        raise Fatal(f"--isolation subprocess needs the executor: {error}") from error
    if settings.executor_ca_certfile is not None:
        raise Fatal(
            "--isolation subprocess and --executor-ca-certfile do not go together: this node has no client key."
        )
    if settings.ssl_certfile is None:
        argv.append("--insecure")
    elif settings.ssl_ca_certfile is None:
        raise Fatal("--isolation subprocess with --ssl-certfile needs --ssl-ca-certfile too, for the executor.")
    else:
        argv += ["--root-certificates", str(settings.ssl_ca_certfile)]
    argv += ["--join-token-file", str(token_file)]
    secrets_here = (settings.state_dir, settings.ssl_keyfile, settings.auth_supernode_private_key)
    for path in (*secrets_here, *settings.secret_files):
        if path is not None:
            argv += ["--app-hidden", str(path.absolute())]
    argv += ["--slots", str(settings.executor_slots), "--grace", str(settings.grace)]
    argv += ["--log-level", settings.log_level]
    argv += ["--guest-sandbox", settings.guest_sandbox]
    if settings.guest_python is not None:
        argv += ["--guest-python", str(settings.guest_python)]
    return argv


def _isolation(settings: SupernodeSettings, bound: str, join_token: str | None) -> Isolation:
    address = reachable(bound)
    if settings.isolation == "process":
        return ProcessIsolation(
            f"Start one: trellis-clientapp {_executor_flags(settings)} --clientappio-api-address {address} "
            "(image trellis/clientapp)"
        )
    token_file = settings.state_dir / "executor-token"
    token_file.unlink(missing_ok=True)
    token_file.touch(0o600)
    token_file.write_text(join_token or "")
    argv = _executor(settings, address, token_file)
    return SubprocessIsolation(lambda: argv, SupernodeSettings)


def _executor_flags(settings: SupernodeSettings) -> str:
    """What an executor has to say to be let in, for people."""
    flags = "--insecure" if settings.ssl_certfile is None else "--root-certificates CA"
    if settings.executor_ca_certfile is not None:
        flags += " --certfile CERTIFICATE --keyfile KEY"
    return flags if settings.join_token is None else f"{flags} --join-token-file FILE"


def _join_token(settings: SupernodeSettings) -> str | None:
    """The secret of executors; where only our own one is meant to come, it gets one that nobody else knows."""
    if settings.join_token is None and settings.isolation == "subprocess":
        return secrets.token_urlsafe(32)
    host, _ = split_address(settings.appio_address)
    if settings.join_token is None and settings.executor_ca_certfile is None and host not in ("127.0.0.1", "::1"):
        _log.warning(
            "Whoever reaches %s may attend as an executor; set --join-token-file to ask for a secret",
            settings.appio_address,
        )
    return settings.join_token


def _audit(settings: SupernodeSettings) -> AuditLog | None:
    try:
        return None if settings.audit_log is None else AuditLog(settings.audit_log)
    except AuditUnavailable as error:
        raise Fatal(f"{error}.") from error


def _gate(settings: SupernodeSettings, audit: AuditLog | None) -> Gate | None:
    """The site's policy; None where everybody may use it and nobody wants to read about it."""
    try:
        policy = Policy() if settings.policy is None else Policy.read(settings.policy)
        if settings.trusted_entities is not None:
            policy = policy.trusting(settings.trusted_entities)
    except PolicyProblem as error:
        raise Fatal(f"{error}.") from error
    return None if policy == Policy() and audit is None else Gate(policy, audit)


def _reply_filter(settings: SupernodeSettings) -> ReplyFilter | None:
    try:
        return None if settings.reply_filter is None else ReplyFilter.load(settings.reply_filter)
    except FilterProblem as error:
        raise Fatal(f"--reply-filter {error}.") from error


async def _open_ledger(state_dir: Path) -> tuple[Ledger, Kept, bytes]:
    ledger = Ledger(state_dir / "node.db")
    try:
        kept = await ledger.open()
        return ledger, kept, await ledger.get("token-secret", lambda: secrets.token_bytes(32))
    except sqlite3.Error as error:
        raise Fatal(
            f"The state in {state_dir} cannot be used ({error}); does another SuperNode use this directory?"
        ) from error


async def serve(settings: SupernodeSettings, stop: Stop) -> None:
    """One SuperNode from its start to its end."""
    fleet_tls, appio_tls = _fleet_tls(settings), _appio_tls(settings)
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = node_key(settings.auth_supernode_private_key, settings.state_dir)
    except OSError as error:
        why = f"The state directory {settings.state_dir} cannot be used: {error.strerror}"
        raise Fatal(f"{why}; name another with --state-dir.") from error
    async with contextlib.AsyncExitStack() as cleanup:
        ledger, kept, secret = await _open_ledger(settings.state_dir)
        cleanup.push_async_callback(ledger.close)
        target = Target(settings.superlink, fleet_tls, proxy_for(settings.superlink))
        channel = EdgeChannel(target, CHANNEL_OPTIONS)
        cleanup.push_async_callback(channel.close, None)
        fleet = FleetClient(channel, key, max_retries=settings.max_retries, max_wait=settings.max_wait_time)
        server = GrpcServer("clientappio", settings.appio_address, appio_tls)
        join_token = _join_token(settings)
        isolation = _isolation(settings, server.bound, join_token)
        metrics = Metrics()
        node_config = parse_config_args([settings.node_config] if settings.node_config else [])
        audit = _audit(settings)
        if audit is not None:
            cleanup.push_async_callback(audit.close)
        gate = _gate(settings, audit)
        reply_filter = _reply_filter(settings)
        node = Node(fleet, ledger, settings.state_dir, secret, node_config, isolation, metrics, gate, reply_filter)
        node.open(kept)
        cleanup.push_async_callback(node.close)
        session = Session(fleet, node, register=settings.auth_supernode_private_key is None)
        metrics.joined.set_function(lambda: session.problem is None)

        async def ready() -> str | None:
            return "The SuperNode stops." if stop.requested else session.problem

        ops = OpsServer(settings.ops_address, ready, metrics.registry)
        join_tokens = None if join_token is None else Renewable(join_token, settings.secret_file("join_token"))
        server.server.add_generic_rpc_handlers((ClientAppIO(node, join_tokens, audit).handler(), StockExecutors()))
        servers = [server]
        if settings.health_server_address is not None:
            servers.append(GrpcServer("health", settings.health_server_address, None))
        for one in servers:
            await one.start()
            cleanup.push_async_callback(one.stop, 0.5)
        cleanup.callback(node.desk.close)
        await ops.start()
        cleanup.push_async_callback(ops.stop)
        await isolation.start()
        cleanup.push_async_callback(_stop_isolation, isolation, stop)
        await session.run(stop)
    _log.info("The SuperNode ended in order")


async def _stop_isolation(isolation: Isolation, stop: Stop) -> None:
    await isolation.stop(max(1.0, stop.remaining() - 1.0))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `trellis-supernode`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--rest" in arguments:
        print(f"{PROG}: {REST_REFUSED}.", file=sys.stderr)
        sys.exit(2)
    settings = load(SupernodeSettings, prog=PROG, argv=arguments, stock_flags=STOCK_FLAGS)
    handshakes.listen_in()
    logs.setup("supernode", level=settings.log_level)
    memory.tune()
    make_non_dumpable()

    async def run(stop: Stop) -> None:
        await serve(settings, stop)

    sys.exit(run_service(run, grace=settings.grace))


if __name__ == "__main__":
    main()
