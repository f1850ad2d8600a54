"""Whole federations behind one interface, for Trellis's own tests and for those of app developers."""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from trellis_kit import federation as kit
from trellis_wire.config import Scalar

from trellis_testing import stock
from trellis_testing.certs import Certs
from trellis_testing.control import Control, RunHandle
from trellis_testing.environment import clean_environment
from trellis_testing.venvs import StockFlwr

TRELLIS = "trellis"
"""A SuperNode of ours, in a list that else names stock releases."""

_START_SECONDS = 180.0  # a stock SuperNode imports for seconds, and many start at once, perhaps beside other work


class Peer(Protocol):
    """One role of a federation, whatever it runs in."""

    name: str

    @property
    def running(self) -> bool: ...

    def start(self) -> None:
        """Start it, again with the same arguments and state if it has run before."""

    def kill(self) -> None:
        """End it without a chance to clean up, and wait until it is gone."""

    async def stop(self, grace: float = 10.0) -> int | None:
        """Ask it to end; returns its exit code."""

    def log(self) -> str:
        """Everything it wrote so far."""


@dataclass(frozen=True)
class Layout:
    """What a federation consists of.

    `supernodes` names the release of each: `TRELLIS` or a stock version such as "1.24.0"; its place in the list is its
    `partition-id`. Apps are hosted on our executors by the interpreter `guest_python`, which has flwr and what the app
    imports; without it by flwr `guest` in an environment of its own. Where roles are containers, `clientapp_image` and
    `serverapp_image` host apps instead. With `tls` every connection is encrypted and executors show certificates, too;
    `control.root_certificates` is the CA for clients.

    The `via_*` addresses (host:port) put something between two roles, a proxy for example: who connects goes there.
    `under` starts roles, by name, under another program (`{"superlink": ("strace", "-D", ...)}`), which has to become
    the role or pass signals on to it.
    """

    supernodes: Sequence[str] = (TRELLIS, TRELLIS)
    guest: str = "1.41.0"
    guest_python: Path | None = None
    isolation: kit.Isolation = "process"
    tls: bool = False  # on every connection, with certificates of its own
    superlink_flags: tuple[str, ...] = ()
    serverapp_flags: tuple[str, ...] = ()
    supernode_flags: tuple[str, ...] = ()
    clientapp_flags: tuple[str, ...] = ()
    superlink_image: str | None = None
    serverapp_image: str | None = None
    supernode_image: str | None = None
    clientapp_image: str | None = None
    via_fleet: str | None = None
    via_serverappio: str | None = None
    via_clientappio: str | None = None  # of the first SuperNode of ours, which is then the only one
    under: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Federation(ABC):
    """A running federation: started with `async with`, or by start() and stop()."""

    roles: Mapping[str, Peer]
    control: Control

    @abstractmethod
    async def start(self) -> None:
        """Start every role and wait until the SuperLink serves and every SuperNode is online."""

    @abstractmethod
    async def stop(self) -> None:
        """End everything that was started."""

    @abstractmethod
    async def until(self, condition: Callable[[], Awaitable[object]], timeout: float, what: str) -> None:
        """Wait until `condition` holds; fails when `timeout` seconds are over or a role has ended by itself."""

    def __getitem__(self, name: str) -> Peer:
        return self.roles[name]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            print(self.logs(), file=sys.stderr)
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        # pytest shows it where the test fails, and only there.
        print(self.logs(), file=sys.stderr)
        await self.stop()

    async def run(self, app: Path, overrides: Mapping[str, Scalar] | None = None) -> RunHandle:
        """Submit the app in this folder."""
        return await self.control.start_run(app, overrides)

    async def online(self) -> set[int]:
        """The SuperNodes that are online."""
        return {node for node, status in (await self.control.nodes()).items() if status == "online"}

    def logs(self) -> str:
        """Every role's log, the last 16,000 characters of each."""
        return "\n".join(f"----- {name} -----\n{peer.log()[-16_000:]}" for name, peer in self.roles.items())


class ProcessFederation(Federation):
    """A federation as processes of this machine, on ports that are free.

    Roles of ours are called as in `trellis_kit.federation`; a stock SuperNode at place n of the list is `supernode-n`.
    """

    def __init__(self, layout: Layout, directory: Path) -> None:
        own = [index for index, release in enumerate(layout.supernodes) if release == TRELLIS]
        if own != list(range(len(own))):
            raise ValueError("Name the SuperNodes of ours before the stock ones")
        self.layout = layout
        self.addresses = kit.Addresses.free(len(own))
        self._directory = directory
        self._processes = kit.Federation(self._plan(len(own)))
        self.roles = self._processes.roles
        self.certs = Certs.make(directory / "certs", len(own)) if layout.tls else None
        if self.certs is not None:
            for role in self._processes.roles.values():
                role.argv = tuple(word for word in role.argv if word != "--insecure")
                role.argv += self.certs.flags(role.name, layout.isolation)
        self._roots = None if self.certs is None else self.certs.ca
        for index, release in enumerate(layout.supernodes):
            if release != TRELLIS:
                name = f"supernode-{index + 1}"
                self._processes.roles[name] = stock.supernode(
                    StockFlwr(release),
                    name,
                    directory,
                    fleet=layout.via_fleet or self.addresses.fleet,
                    http=self.addresses.http,
                    port=kit.free_ports(1)[0],
                    node_config=f"partition-id={index} num-partitions={len(layout.supernodes)}",
                    root_certificates=self._roots,
                )
        for name, program in layout.under.items():
            role = self._processes[name]
            role.argv = (*program, *role.argv)
        self.control = Control(self.addresses.control, self._roots)

    def _plan(self, own: int) -> kit.Plan:
        layout = self.layout
        plain = () if layout.tls else ("--insecure",)

        def via(flag: str, address: str | None) -> tuple[str, ...]:
            return () if address is None else (flag, address)  # the last mention of a flag counts

        return kit.Plan(
            directory=self._directory,
            addresses=self.addresses,
            guest_python=layout.guest_python or StockFlwr(layout.guest).ensure().python,
            isolation=layout.isolation,
            env=clean_environment(self._directory / "home", Path(sys.executable).parent),
            partitions=len(layout.supernodes),
            superlink_flags=(*plain, *layout.superlink_flags),
            supernode_flags=(*plain, *layout.supernode_flags, *via("--superlink", layout.via_fleet)),
            serverapp_flags=(
                *(*plain, *layout.serverapp_flags),
                *via("--serverappio-api-address", layout.via_serverappio),
            ),
            clientapp_flags=(
                *(*plain, *layout.clientapp_flags),
                *via("--clientappio-api-address", layout.via_clientappio),
            ),
        )

    async def start(self) -> None:
        self._processes.start()
        await self._processes.ready(_START_SECONDS, root_certificates=self._roots)
        count = len(self.layout.supernodes)

        async def all_online() -> bool:
            return len(await self.online()) == count

        await self.until(all_online, _START_SECONDS, f"{count} SuperNodes are online")

    async def until(self, condition: Callable[[], Awaitable[object]], timeout: float, what: str) -> None:
        async with asyncio.timeout(timeout + 5):  # a condition may hang, too
            await self._processes.until(condition, timeout, what)

    async def stop(self) -> None:
        await self.control.close()
        await self._processes.stop()
