"""The SuperLink's program: settings in, core and surfaces up, orderly end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from trellis_kit import handshakes, logs, memory, traced  # noqa: F401  (traced: loads gRPC)
from trellis_kit.federation import StartProblem, find_program
from trellis_kit.grpc_server import GrpcServer
from trellis_kit.http_server import HttpServer
from trellis_kit.isolation import Isolation, SubprocessIsolation
from trellis_kit.lifecycle import EXIT_FAILED, Fatal, Stop, run_service
from trellis_kit.ops import OpsServer
from trellis_kit.processes import make_non_dumpable, take_descriptors
from trellis_kit.renewable import Renewable
from trellis_kit.settings import load, reachable, split_address
from trellis_kit.tls import ServerTls, interior_tls, server_tls
from trellis_wire.identity import KeyProblem, parse_public_key, public_pem

from trellis_superlink.core.errors import TryAgainLater, Unusable
from trellis_superlink.core.nodes import Unknown
from trellis_superlink.core.quotas import Limits
from trellis_superlink.core.service import Core, CoreConfig
from trellis_superlink.edges.adapter import Adapter
from trellis_superlink.edges.control import Control
from trellis_superlink.edges.credentials import Anybody, ClientCertificate, CredentialProvider, JoinToken
from trellis_superlink.edges.fleet import Fleet
from trellis_superlink.edges.flow import SERVER_OPTIONS, Flow
from trellis_superlink.edges.http import application, control_over_http, fleet_over_http
from trellis_superlink.edges.links import KEY, Links
from trellis_superlink.edges.parts import NodeObjects
from trellis_superlink.edges.rpc import Drain, Router, Service, refused_services
from trellis_superlink.edges.serverappio import ServerAppIO
from trellis_superlink.login import Identity
from trellis_superlink.metrics import Metrics
from trellis_superlink.settings import STOCK_FLAGS, SuperLinkSettings

_log = logging.getLogger(__name__)

PROG = "trellis-superlink"
_REUSE, _KEEP = 2 * memory.MIB, 8 * memory.MIB  # parts of a stream come from memory that was used before
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class SuperLink:
    """All of one SuperLink process: `start`, then `stop`."""

    def __init__(self, settings: SuperLinkSettings, core: Core, link_key: bytes) -> None:
        self.settings = settings
        self._identity = Identity.of(settings)
        self.core = core
        self.drain = Drain()
        self.metrics = Metrics()
        tls = server_tls(
            insecure=settings.insecure,
            certfile=settings.ssl_certfile,
            keyfile=settings.ssl_keyfile,
            client_ca=None,
            flags="--ssl-certfile and --ssl-keyfile",
        )
        self._join_token = settings.join_token
        if self._join_token is None and settings.isolation == "subprocess":
            self._join_token = secrets.token_urlsafe(32)  # known to our own executor only
        appio_tls = self._appio_tls(tls)
        flow = Flow()
        links = Links(link_key, self._public_url)
        fleet = Fleet(core, self.drain, self.metrics, flow)
        control = Control(core, self.drain, self.metrics, links, settings.assumed_cli, self._identity.login)
        appio = ServerAppIO(core, self.drain, self.metrics, flow, self._providers())
        self.appio = self._server(
            "serverappio", settings.appio_address, appio_tls, (appio.service(), *refused_services())
        )
        objects = NodeObjects(core, flow)
        self.fleet = self._server(
            "fleet",
            settings.fleet_api_address,
            tls,
            (fleet.service(), objects.service(), Adapter(fleet, flow).service()),
        )
        self.control = self._server("control", settings.control_api_address, tls, control.services())
        over_http = (fleet_over_http(fleet.service()), control_over_http(control.services()[0]))
        address = f"{settings.host}:{settings.port}"
        app = application(over_http, self.metrics, core, links, self._identity.guard)
        self.http = HttpServer("http", address, app, tls=tls, flag="--port")
        self._servers: list[GrpcServer | HttpServer] = [self.appio, self.fleet, self.control, self.http]
        if settings.health_server_address is not None:
            self._servers.append(GrpcServer("health", settings.health_server_address, None))
        self.ops = OpsServer(settings.ops_address, self.ready, self.metrics.registry, self.gauge)
        self._isolation: Isolation | None = None
        self._secrets: TemporaryDirectory[str] | None = None

    def _public_url(self) -> str:
        """Where the HTTP edge is reached from outside; a guess unless the operator says."""
        scheme = "http" if self.settings.insecure else "https"
        port = self.http.bound.rpartition(":")[2]
        return (self.settings.public_url or f"{scheme}://{socket.getfqdn()}:{port}").rstrip("/")

    def _server(self, name: str, address: str, tls: ServerTls | None, services: tuple[Service, ...]) -> GrpcServer:
        server = GrpcServer(name, address, tls, options=SERVER_OPTIONS)
        server.server.add_generic_rpc_handlers((Router(services, self.metrics, self._identity.guard),))
        return server

    def _appio_tls(self, others: ServerTls | None) -> ServerTls | None:
        """What ServerAppIO is served with, for its own certificate or that of the other ports."""
        settings = self.settings
        certfile, keyfile = settings.appio_certfile, settings.appio_keyfile
        if settings.isolation == "subprocess":
            if certfile or keyfile or settings.executor_ca_certfile:
                raise Fatal(
                    "With --isolation subprocess the only executor is the SuperLink's own, over the loopback: leave "
                    "out --appio-certfile, --appio-keyfile and --executor-ca-certfile."
                )
            return None
        if settings.appio_insecure and (certfile or keyfile):
            raise Fatal("Give either --appio-insecure or --appio-certfile, not both.")
        if certfile is None and keyfile is None and others is not None and not settings.appio_insecure:
            certfile, keyfile = others.certfile, others.keyfile
        return interior_tls(
            insecure=settings.insecure or settings.appio_insecure,
            certfile=certfile,
            keyfile=keyfile,
            client_ca=settings.executor_ca_certfile,
            token=bool(self._join_token),
            flags="--appio-certfile and --appio-keyfile",
        )

    def _providers(self) -> Sequence[CredentialProvider]:
        if self._join_token:
            return [JoinToken(Renewable(self._join_token, self.settings.secret_file("join_token")))]
        if self.settings.executor_ca_certfile is not None:
            return [ClientCertificate()]
        host, _ = split_address(self.settings.serverappio_api_address)
        if host not in _LOOPBACK:
            _log.warning(
                "Whoever reaches %s may attend as an executor; set --join-token-file to ask for a secret",
                self.settings.serverappio_api_address,
            )
        return [Anybody()]

    async def ready(self) -> str | None:
        """Why the SuperLink is not ready, or None."""
        if self.drain.begun:
            return "The SuperLink stops."
        return await self.core.problem()

    async def start(self) -> None:
        """Ports open one after the other; the executor comes last."""
        for server in self._servers:
            await server.start()
        await self.ops.start()
        if self.settings.isolation == "subprocess":
            argv = self._executor()
            self._isolation = SubprocessIsolation(lambda: argv, SuperLinkSettings)
            await self._isolation.start()

    def _executor(self) -> Sequence[str]:
        """How the SuperLink starts its own executor. Raises Fatal where that is not installed."""
        try:
            program = find_program("trellis-serverapp")
        except StartProblem as error:
            raise Fatal(f"--isolation subprocess needs the executor: {error}") from error
        argv = [program, "--insecure", "--serverappio-api-address", reachable(self.appio.bound)]
        argv += ["--guest-python", self.settings.guest, "--grace", str(self.settings.grace)]
        argv += ["--guest-sandbox", self.settings.guest_sandbox]
        keys = (self.settings.ssl_keyfile, self.settings.appio_keyfile, self.settings.account_auth_config)
        for path in (*self.core.places, *keys, *self.settings.secret_files):
            if path is not None:
                argv += ["--app-hidden", str(path.absolute())]
        argv += ["--log-level", self.settings.log_level]
        if self._join_token:
            self._secrets = TemporaryDirectory(prefix="trellis-superlink-")  # for its owner only
            path = Path(self._secrets.name) / "join-token"
            path.write_text(self._join_token)
            argv += ["--join-token-file", str(path)]
        return argv

    async def gauge(self) -> None:
        """Sets the gauges to what the core counts now."""
        counts = await self.core.counts()
        for status, count in counts.runs.items():
            self.metrics.runs.labels(status).set(count)
        self.metrics.nodes_online.set(counts.nodes_online)
        self.metrics.executors.set(counts.executors)

    async def stop(self, grace: float) -> None:
        """Our own executor ends first and may still report; then held calls are answered, streams are told to come
        again, and transfers may finish. All of it within `grace` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        if self._isolation is not None:
            await self._isolation.stop(grace * 0.7)
        self.drain.begin()
        rest = max(0.5, end - loop.time())
        await asyncio.gather(*(server.stop(rest) for server in self._servers))
        await self.ops.stop()
        await self._identity.close()
        if self._secrets is not None:
            self._secrets.cleanup()


def core_config(settings: SuperLinkSettings) -> CoreConfig:
    """What the operator decided, in the core's words."""
    return CoreConfig(
        database=settings.database_path,
        storage_dir=settings.storage_dir,
        retention=settings.retention,
        artifact_limit=settings.artifact_limit,
        limits=Limits(settings.runs_per_account, settings.bytes_per_account),
        unknown_nodes=unknown_nodes(settings),
        executor_hint=(
            f"Start one: trellis-serverapp {_executor_flags(settings)} --serverappio-api-address "
            f"{reachable(settings.serverappio_api_address)} (image trellis/serverapp)"
        ),
    )


def unknown_nodes(settings: SuperLinkSettings) -> Unknown:
    """What becomes of SuperNodes that no operator registered. Fatal for settings that contradict each other."""
    closed = settings.enable_supernode_auth or settings.auth_list_public_keys is not None
    if settings.unknown_supernodes is None:
        return Unknown.REFUSE if closed else Unknown.ADMIT
    if closed and settings.unknown_supernodes == "admit":
        raise Fatal("--unknown-supernodes admit lets in those that --enable-supernode-auth keeps out: leave one out.")
    return Unknown(settings.unknown_supernodes)


def listed_keys(path: Path) -> list[bytes]:
    """The keys of `--auth-list-public-keys`, as PEM; Flower 1.20-1.22 have the same file. Fatal."""
    try:
        found = [one.strip() for one in path.read_text(encoding="utf-8").replace(",", "\n").splitlines()]
        return [public_pem(parse_public_key(one.encode())) for one in found if one and not one.startswith("#")]
    except OSError as error:
        raise Fatal(f"--auth-list-public-keys {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, KeyProblem) as error:
        raise Fatal(f"--auth-list-public-keys {path}: {error}.") from error


def _executor_flags(settings: SuperLinkSettings) -> str:
    """What an executor has to say to be let in, for people."""
    flags = "--root-certificates CA"
    if settings.appio_insecure or (settings.insecure and settings.appio_certfile is None):
        flags = "--insecure"
    if settings.executor_ca_certfile is not None:
        flags += " --certfile CERTIFICATE --keyfile KEY"
    return flags if settings.join_token is None else f"{flags} --join-token-file FILE"


async def serve(settings: SuperLinkSettings, stop: Stop) -> None:
    """One SuperLink from its start to its end."""
    try:
        core = await Core.open(core_config(settings))
    except (TryAgainLater, Unusable) as error:
        raise Fatal(f"The database or its folder cannot be used: {error}", exit_code=EXIT_FAILED) from error
    try:
        if settings.auth_list_public_keys is not None:
            await core.nodes.keep_listed(listed_keys(settings.auth_list_public_keys))
        link = SuperLink(settings, core, await core.key(KEY))
        await link.start()
        _log.info("The SuperLink is ready")
        try:
            await stop.wait()
        finally:
            await link.stop(max(0.5, stop.remaining() - 1.0))
    finally:
        await core.close()
    _log.info("The SuperLink ended in order")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `trellis-superlink`."""
    settings = load(SuperLinkSettings, prog=PROG, argv=argv, stock_flags=STOCK_FLAGS)
    handshakes.listen_in()
    logs.setup("superlink", level=settings.log_level, format=settings.log_format)
    memory.tune(reuse=_REUSE, keep=_KEEP)
    take_descriptors()
    files = (settings.ssl_keyfile, settings.appio_keyfile, settings.account_auth_config, *settings.secret_files)
    if any(files) or settings.isolation == "subprocess":  # which makes a join token, and has apps of the same user
        make_non_dumpable()

    async def run(stop: Stop) -> None:
        await serve(settings, stop)

    sys.exit(run_service(run, grace=settings.grace))


if __name__ == "__main__":
    main()
