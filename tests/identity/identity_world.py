"""A federation whose accounts log in at Keycloak, command lines of ours and of stock, and the browser of a user."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
from browser import Browser
from chromium import Chromium
from keycloak_server import PIPELINE, Keycloak
from trellis_kit import federation as kit
from trellis_testing import StockCli, StockFlwr
from trellis_testing.certs import Certs
from trellis_testing.environment import clean_environment
from trellis_testing.stock import Finished, started_run
from trellis_wire.pb.edge import control_pb2
from trellis_wire.pb.edge.control_pb2_grpc import ControlStub
from waits import wait_until

TICKER = Path(__file__).parent / "apps" / "ticker"
GUEST = "1.41.0"

_PAGE = re.compile(r"https://\S+?/device\?user_code=[A-Z-]+")
SOON = 180.0
"""Seconds for what takes a few on a machine that has nothing else to do."""


class Cli(ABC):
    """A command line of one user."""

    @abstractmethod
    async def login(self) -> tuple[asyncio.subprocess.Process, str]:
        """One that waits for its user, and the page that it printed."""

    @abstractmethod
    async def about(self, *command: str) -> Finished:
        """A command about the SuperLink."""

    @abstractmethod
    async def start(self, app: Path) -> Finished:
        """Submits the app, and does not wait for the run."""

    @abstractmethod
    async def follow(self, run_id: int) -> asyncio.subprocess.Process:
        """One that prints the run's log as it comes."""

    async def log_in(self, keycloak: Keycloak, user: str, browser: Browser | Chromium | None = None) -> None:
        """With a browser that is quick, where none is given."""
        process, page = await self.login()
        assert page.startswith(keycloak.url), page  # where browsers reach it, not where the SuperLink does
        browser = browser or Browser(keycloak.authority.certfile)
        await asyncio.to_thread(browser.agree, page, user, keycloak.passwords[user])
        browser.close()
        output, _ = await asyncio.wait_for(process.communicate(), SOON)
        assert process.returncode == 0, output.decode()

    async def runs(self) -> dict[int, str]:
        """What `ls` shows: the status of each run."""
        listed = json.loads(good(await self.about("ls", "--format", "json")))
        return {int(run["run-id"]): run["status"] for run in listed["runs"]}

    async def started(self) -> int:
        """A run of the ticker that ticks."""
        run_id = started_run(good(await self.start(TICKER)))
        async with asyncio.timeout(SOON):
            while (await self.runs())[run_id] != "running":
                await asyncio.sleep(0.2)
        return run_id


def good(done: Finished) -> str:
    """What a command that must succeed printed."""
    assert done.code == 0, done.output
    return done.output


async def waiting(process: asyncio.subprocess.Process) -> tuple[asyncio.subprocess.Process, str]:
    """A login that has printed its page."""
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(SOON):
        while (found := _PAGE.search(re.sub(r"\s*\n\s*", "", seen) if "user_code" in seen else seen)) is None:
            part = await process.stdout.read(4096)
            assert part, seen
            seen += part.decode()
    return process, found[0]


class OurCli(Cli):
    """`trellis`, with logins of its own."""

    def __init__(self, world: World, home: Path, **environment: str) -> None:
        self._where = ("--superlink", world.addresses.control, "--root-certificates", str(world.certs.ca))
        self._env = clean_environment(home, Path(sys.executable).parent) | environment

    async def login(self) -> tuple[asyncio.subprocess.Process, str]:
        return await waiting(await self._spawn("login", "--no-browser", *self._where))

    async def about(self, *command: str) -> Finished:
        process = await self._spawn(*command, *self._where)
        output, _ = await asyncio.wait_for(process.communicate(), SOON)
        return Finished(process.returncode or 0, output.decode())

    async def start(self, app: Path) -> Finished:
        return await self.about("run", str(app))

    async def follow(self, run_id: int) -> asyncio.subprocess.Process:
        return await self._spawn("log", str(run_id), *self._where)

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            kit.find_program("trellis"),
            *arguments,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


class TheirCli(Cli):
    """Stock's `flwr` of one release."""

    def __init__(self, world: World, release: str, home: Path) -> None:
        self._cli = StockCli(
            StockFlwr(release),
            home,
            control=world.addresses.control,
            http=world.addresses.http,
            root_certificates=world.certs.ca,
            login=True,
        )

    async def login(self) -> tuple[asyncio.subprocess.Process, str]:
        return await waiting(await self._cli.spawn(*self._cli.named(TICKER, "login")))

    async def about(self, *command: str) -> Finished:
        return await asyncio.wait_for(self._cli.about(TICKER, *command), SOON)

    async def start(self, app: Path) -> Finished:
        return await asyncio.wait_for(self._cli("run", str(self._cli.app(app)), "here"), SOON)

    async def follow(self, run_id: int) -> asyncio.subprocess.Process:
        return await self._cli.spawn(*self._cli.named(TICKER, "log", str(run_id), "--stream"))


class World:
    """A SuperLink that trusts the session's Keycloak and takes its clients' tokens, and an executor for runs."""

    def __init__(
        self,
        directory: Path,
        keycloak: Keycloak,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        executor: bool = True,
    ) -> None:
        """`environment`: what the SuperLink has in its own besides."""
        self.keycloak = keycloak
        self.certs = Certs.make(directory / "certs", 1)
        self.addresses = kit.Addresses.free(0)
        self.audit_file = directory / "audit.jsonl"
        login = (
            *("--oidc-issuer", keycloak.issuer, "--oidc-internal-url", keycloak.internal_url),
            *("--oidc-ca-certfile", str(keycloak.authority.certfile), "--audit-log", str(self.audit_file)),
        )
        self._federation = kit.Federation(
            kit.Plan(
                directory=directory,
                addresses=self.addresses,
                guest_python=StockFlwr(GUEST).ensure().python,
                env=clean_environment(directory / "home", Path(sys.executable).parent),
                superlink_flags=(*self.certs.flags("superlink"), *login, *flags),
                serverapp_flags=self.certs.flags("serverapp"),
            )
        )
        if not executor:
            del self._federation.roles["serverapp"]
        self._federation["superlink"].env |= environment or {}

    def __enter__(self) -> World:
        self._federation.start()
        asyncio.run(self._federation.ready(120, root_certificates=self.certs.ca))
        return self

    def __exit__(self, *exc: object) -> None:
        print(self._federation.logs_for_people(60), file=sys.stderr)
        asyncio.run(self._federation.stop())

    async def __aenter__(self) -> World:
        self._federation.start()
        await self._federation.ready(120, root_certificates=self.certs.ca)
        return self

    async def __aexit__(self, *exc: object) -> None:
        print(self._federation.logs_for_people(60), file=sys.stderr)
        await self._federation.stop()

    def audited(self) -> list[dict[str, Any]]:
        """The audit log so far."""
        return [json.loads(line) for line in self.audit_file.read_text().splitlines()]

    def call(self, token: str | None, header: str = "authorization") -> grpc.StatusCode:
        """How ListRuns with this token ends over gRPC, in one of the two headers that may carry it."""
        credentials = grpc.ssl_channel_credentials(self.certs.ca.read_bytes())
        metadata = () if token is None else ((header, f"Bearer {token}" if header == "authorization" else token),)
        with grpc.secure_channel(self.addresses.control, credentials) as channel:
            try:
                ControlStub(channel).ListRuns(control_pb2.ListRunsRequest(), metadata=metadata, timeout=SOON)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    def call_http(self, token: str | None) -> httpx.Response:
        """The same over HTTP."""
        context = ssl.create_default_context(cafile=str(self.certs.ca))
        headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        with httpx.Client(verify=context, timeout=SOON) as http:
            return http.post(f"https://{self.addresses.http}/v1/control/list-runs", headers=headers, content=b"")


def service_token(
    keycloak: Keycloak,
    realm: str = "",
    client: str = PIPELINE,
    secret: str = "",
    *,
    kind: str = "access_token",
) -> str:
    """A token of a service account."""
    base = keycloak.issuer if not realm else f"{keycloak.url}/realms/{realm}"
    form = {
        "grant_type": "client_credentials",
        "client_id": client,
        "client_secret": secret or keycloak.pipeline_secret,
        "scope": "openid",
    }
    context = ssl.create_default_context(cafile=str(keycloak.authority.certfile))
    answer = httpx.post(f"{base}/protocol/openid-connect/token", data=form, verify=context, timeout=SOON)
    return str(answer.raise_for_status().json()[kind])


async def until(condition: Callable[[], object], what: str, timeout: float = SOON) -> None:
    """The same as `wait_until`, beside what else the loop does."""
    await asyncio.to_thread(wait_until, condition, what, timeout, every=0.5)
