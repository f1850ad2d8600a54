"""A federation in containers: each role its own, on the networks of the design's diagram."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_network
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Final, Self
from uuid import uuid4

from docker.errors import APIError, ImageNotFound
from docker.models.containers import Container
from docker.models.volumes import Volume
from docker.types import EndpointConfig, IPAMConfig, IPAMPool
from testcontainers.core.container import DockerContainer
from testcontainers.core.labels import create_labels
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import ExecWaitStrategy
from trellis_kit.federation import free_ports, serves

from trellis_testing import engine
from trellis_testing.certs import Certs
from trellis_testing.control import Control
from trellis_testing.federation import TRELLIS, Federation, Layout

READY_SECONDS: Final = 120.0
"""What a role gets to say that it is ready: its container starts, its interpreter, and it finds the others."""

_READY = ["/opt/trellis/bin/python", "-I", "-m", "trellis_kit.healthcheck"]
_CONTROL, _HTTP = 9093, 8000
_KEEPS_STATE = ("superlink", "supernode")
_CERTS = Path("/certs")
_MADE_HERE = "trellis/"
_LOOK = 0.2
_NOBODY = {"com.docker.network.bridge.inhibit_ipv4": "true"}  # the host has no address: what listens on it is far away
_FREEZES = 10  # a container whose processes fork just then cannot be frozen by cgroup v1 (runc 1.1)


class RoleEnded(Exception):
    """A role's container has ended by itself."""


class AddressedNetwork(Network):
    """A network that gives each container an address for good, as machines have them: a cable that is plugged in again
    or a container that starts again changes none."""

    def __init__(self, name: str, *, internal: bool) -> None:
        super().__init__()
        self.name = name
        self._internal = internal

    def create(self) -> Self:
        """On a range that Docker finds free, but named by us: only then containers can be given addresses."""
        while True:
            self._docker_network_kw = {"internal": self._internal, "options": _NOBODY if self._internal else {}}
            super().create()
            found = _docker(self)
            found.reload()
            subnet = found.attrs["IPAM"]["Config"][0]["Subnet"]
            self.remove()
            self._docker_network_kw["ipam"] = IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)])
            try:
                super().create()
            except APIError as error:
                if "overlap" not in str(error):
                    raise
            else:
                self._addresses = ip_network(subnet).hosts()
                next(self._addresses)  # the host's own
                return self

    def next_address(self) -> str:
        return str(next(self._addresses))


@dataclass
class Link:
    """A container's place in a network: the names that others there have for it, and its address."""

    network: Network
    aliases: Sequence[str] = ()
    address: str | None = None  # where the network gives one: from the container's creation on

    def reserve(self) -> None:
        if isinstance(self.network, AddressedNetwork) and self.address is None:
            self.address = self.network.next_address()

    def connect(self, container: Container) -> None:
        _docker(self.network).connect(container, aliases=list(self.aliases), ipv4_address=self.address)

    def disconnect(self, container: Container) -> None:
        _docker(self.network).disconnect(container)


class LinkedContainer(DockerContainer):
    """A container that is in all of its networks before it starts; testcontainers' own knows of one network only."""

    def __init__(self, image: str, links: Sequence[Link], **options: Any) -> None:
        super().__init__(image)
        self._links = links
        self._options = options

    def start(self) -> Self:
        """Start it, for the first time or again."""
        if self._container is None:
            self._container = self._create()
        self._container.start()
        return self

    def _create(self) -> Container:
        for link in self._links:
            link.reserve()
        first, *others = self._links
        network = first.network.name
        try:
            if self.image.startswith(_MADE_HERE):
                self.get_docker_client().client.images.get(self.image)  # those of that name in a registry are not ours
            container = self.get_docker_client().create(
                self.image,
                network=network,
                networking_config={network: _endpoint(first)},
                **self._options,
            )
        except (ImageNotFound, APIError) as error:
            if isinstance(error, APIError) and error.status_code not in (403, 404, 500):
                raise
            raise RuntimeError(f"There is no image {self.image} here ({error.explanation}); build it first") from error
        for link in others:
            link.connect(container)
        return container


def _endpoint(link: Link) -> EndpointConfig:
    return EndpointConfig(version("docker"), aliases=list(link.aliases), ipv4_address=link.address)


class ContainerPeer:
    """One role in a container. `container` is the testcontainers object, for whatever is not here."""

    def __init__(self, name: str, container: LinkedContainer, links: Mapping[str, Link]) -> None:
        self.name = name
        self.container = container
        self.links = dict(links)

    @property
    def created(self) -> bool:
        return self.container._container is not None

    @property
    def docker(self) -> Container:
        """The Docker library's object."""
        return self.container.get_wrapped_container()

    @property
    def state(self) -> Mapping[str, Any]:
        """Docker's `State`: `Status`, `ExitCode`, `OOMKilled`, ..."""
        self.docker.reload()
        state: Mapping[str, Any] = self.docker.attrs["State"]
        return state

    @property
    def running(self) -> bool:
        return self.created and self.state["Status"] in ("running", "paused")

    def start(self) -> None:
        self.container.start()

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Wait until its image's own health check says that it is well. TimeoutError."""
        ready = ExecWaitStrategy(_READY).with_startup_timeout(math.ceil(timeout)).with_poll_interval(1.0)
        ready.wait_until_ready(self.container)

    def kill(self) -> None:
        self.docker.kill()
        self.docker.wait()

    async def stop(self, grace: float = 10.0) -> int | None:
        await asyncio.to_thread(self.docker.stop, timeout=math.ceil(grace))
        code: int = self.state["ExitCode"]
        return code

    def pause(self) -> None:
        """Freeze all of its processes until `resume()`."""
        for _ in range(_FREEZES):
            try:
                self.docker.pause()
            except APIError as error:
                if "unable to freeze" not in str(error):
                    raise
            else:
                return
        raise TimeoutError(f"{self.name} could not be paused")

    def resume(self) -> None:
        self.docker.unpause()

    def disconnect(self, network: str) -> None:
        """Take it out of one of its networks (a key of `links`)."""
        self.links[network].disconnect(self.docker)

    def connect(self, network: str | Network) -> None:
        """Connect it again, as it was; or to another network that testcontainers made, a database's for example."""
        link = self.links[network] if isinstance(network, str) else Link(network)
        link.connect(self.docker)

    def exec(self, *argv: str) -> tuple[int, str]:
        """Run a program inside, as the role's own user: its exit code and what it wrote."""
        result = self.container.exec(list(argv))
        return result.exit_code or 0, result.output.decode(errors="replace")

    def log(self) -> str:
        written: bytes = self.docker.logs() if self.created else b""
        return written.decode(errors="replace")


class FederationContainer(Federation):
    """`async with FederationContainer(supernodes=3, clientapp_image="my/clientapp") as federation:`

    Keywords are those of `Layout`, and `volume_options`: options of Docker's local driver for the volume that keeps a
    role's state, by role (`{"superlink": {"type": "tmpfs", "device": "tmpfs", "o": "size=64m,mode=1777"}}`). Images
    default to SUPERLINK_IMAGE, SUPERNODE_IMAGE, SERVERAPP_IMAGE and CLIENTAPP_IMAGE, else to those of `make images`.

    Networks, by their keys in a peer's `links`: `control` is where the SuperLink's Control port is published from;
    `fleet` has the SuperLink and the SuperNodes, `serverapp` the SuperLink and the ServerApp process, `site-1` the
    first SuperNode and its ClientApp process. Nothing leads outside but `control`; a listener listens in one network.
    """

    def __init__(
        self,
        supernodes: int | Sequence[str] = 2,
        *,
        volume_options: Mapping[str, Mapping[str, str]] | None = None,
        **layout: Any,
    ) -> None:
        releases = (TRELLIS,) * supernodes if isinstance(supernodes, int) else tuple(supernodes)
        self.layout = layout_ = Layout(releases, **layout)
        _refuse_what_processes_only_have(layout_)
        self._engine = engine.engine()
        self._id = uuid4().hex[:8]
        self._volume_options = volume_options or {}
        self._volumes: list[Volume] = []
        sites = [f"site-{number}" for number in range(1, len(releases) + 1)]
        self.networks = {
            name: AddressedNetwork(self._name(name), internal=name != "control")
            for name in ("control", "fleet", "serverapp", *sites)
        }
        self._folder = TemporaryDirectory(prefix="trellis-testing-")  # for its owner only
        self.certs = Certs.make(Path(self._folder.name) / "certs", len(releases)) if layout_.tls else None
        if self.certs is not None:
            self.certs.readable_by_all()
        control, http = free_ports(2)
        self.http_address = f"127.0.0.1:{http}"
        self.peers: dict[str, ContainerPeer] = {}
        self.roles = self.peers
        self._add_superlink(control, http)
        self._add_serverapp()
        for index in range(len(releases)):
            self._add_supernode(index)
            self._add_clientapp(f"clientapp-{index + 1}", index)
        self.control = Control(f"127.0.0.1:{control}", None if self.certs is None else self.certs.ca)

    def __getitem__(self, name: str) -> ContainerPeer:
        return self.peers[name]

    # ---- roles ---------------------------------------------------------------------------------------------

    def _add_superlink(self, control: int, http: int) -> None:
        self._add(
            "superlink",
            self.layout.superlink_image,
            {
                "--serverappio-api-address": "serverappio:9091",
                "--fleet-api-address": "fleet:9092",
                "--control-api-address": f"control:{_CONTROL}",
                "--host": "control",
                "--port": str(_HTTP),
            },
            self.layout.superlink_flags,
            {
                "control": Link(self.networks["control"], ["control"]),
                "fleet": Link(self.networks["fleet"], ["fleet", "superlink"]),
                "serverapp": Link(self.networks["serverapp"], ["serverappio", "superlink"]),
            },
            ports={f"{_CONTROL}/tcp": ("127.0.0.1", control), f"{_HTTP}/tcp": ("127.0.0.1", http)},
        )

    def _add_serverapp(self) -> None:
        self._add(
            "serverapp",
            self.layout.serverapp_image,
            {"--serverappio-api-address": "superlink:9091"},
            self.layout.serverapp_flags,
            {"serverapp": Link(self.networks["serverapp"])},
        )

    def _add_supernode(self, index: int) -> None:
        site = f"site-{index + 1}"
        self._add(
            f"supernode-{index + 1}",
            self.layout.supernode_image,
            {
                "--superlink": "superlink:9092",
                "--clientappio-api-address": "supernode:9094",
                "--node-config": f"partition-id={index} num-partitions={len(self.layout.supernodes)}",
            },
            self.layout.supernode_flags,
            {"fleet": Link(self.networks["fleet"]), site: Link(self.networks[site], ["supernode"])},
        )

    def _add_clientapp(self, name: str, index: int) -> ContainerPeer:
        site = f"site-{index + 1}"
        return self._add(
            name,
            self.layout.clientapp_image,
            {"--clientappio-api-address": "supernode:9094"},
            self.layout.clientapp_flags,
            {site: Link(self.networks[site])},
            certificates_of=f"clientapp-{index + 1}",
        )

    def add_clientapp(self, supernode: int) -> ContainerPeer:
        """Start one more ClientApp process at this SuperNode (1 is the first); it ends with the federation."""
        number = 2
        while (name := f"clientapp-{supernode}-{number}") in self.peers:
            number += 1
        peer = self._add_clientapp(name, supernode - 1)
        peer.start()
        return peer

    def _add(
        self,
        name: str,
        image: str | None,
        settings: Mapping[str, str],
        more_flags: Sequence[str],
        links: Mapping[str, Link],
        *,
        certificates_of: str | None = None,
        **options: Any,
    ) -> ContainerPeer:
        role = name.partition("-")[0]
        command = [*chain.from_iterable(settings.items()), *more_flags]
        volumes = {}
        if role in _KEEPS_STATE:
            volumes[self._name(name)] = {"bind": "/app/state", "mode": "rw"}
        if self.certs is not None:
            volumes[str(self.certs.folder / (certificates_of or name))] = {"bind": str(_CERTS), "mode": "ro,z"}
            command += self.certs.flags(role, folder=_CERTS)
        else:
            command.append("--insecure")
        container = LinkedContainer(
            image or os.environ.get(f"{role.upper()}_IMAGE") or f"{_MADE_HERE}{role}:{version('trellis-testing')}",
            list(links.values()),
            command=command,
            name=self._name(name),
            hostname=name,
            environment={"TRELLIS_OPS_ADDRESS": "127.0.0.1:8001"},
            volumes=volumes,
            # Guarded as compose/roles.yaml does.
            read_only=True,
            tmpfs={"/tmp": "exec", "/var/tmp": "exec"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            use_config_proxy=False,  # none leads from one of these networks to another
            healthcheck={"test": ["NONE"]},  # asked for once, by wait_ready(): every few seconds is work for nothing
            **options,
        )
        self.peers[name] = ContainerPeer(name, container, links)
        return self.peers[name]

    def _name(self, name: str) -> str:
        return f"trellis-{self._id}-{name}"

    # ---- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await asyncio.to_thread(self.prepare)
        await self._each(ContainerPeer.start)
        count = len(self.layout.supernodes)

        async def served() -> bool:
            return await serves(self.control.address, self.control.root_certificates)

        async def all_online() -> bool:
            return len(await self.online()) == count

        await self.until(served, READY_SECONDS, "the SuperLink serves")
        await self.until(all_online, READY_SECONDS, f"{count} SuperNodes are online")
        await self._each(ContainerPeer.wait_ready)

    def prepare(self) -> None:
        """Make the networks and volumes; `start()` does it first."""
        for network in self.networks.values():
            network.create()
        labels = create_labels("", None)
        for name in self.peers:
            if name.partition("-")[0] in _KEEPS_STATE:
                options = dict(self._volume_options.get(name, {}))
                self._volumes.append(self._engine.volumes.create(self._name(name), driver_opts=options, labels=labels))

    async def _each(self, action: Callable[[ContainerPeer], None]) -> None:
        """To its end for each, also where one fails: what is removed then must not be under way to be made."""
        doing = (asyncio.to_thread(action, peer) for peer in list(self.peers.values()))
        for done in await asyncio.gather(*doing, return_exceptions=True):
            if isinstance(done, BaseException):
                raise done

    async def until(self, condition: Callable[[], Awaitable[object]], timeout: float, what: str) -> None:
        end = monotonic() + timeout
        async with asyncio.timeout(timeout + 5):  # a condition may hang, too
            while True:
                await asyncio.to_thread(self.check)
                if await condition():
                    return
                if monotonic() > end:
                    raise TimeoutError(f"Waited {timeout:g} s until {what}, in vain.")
                await asyncio.sleep(_LOOK)

    def check(self) -> None:
        """RoleEnded when a container has ended."""
        for peer in self.peers.values():
            if peer.created and not peer.running:
                raise RoleEnded(f"{peer.name} ended with exit code {peer.state['ExitCode']}:\n{peer.log()[-4000:]}")

    async def stop(self) -> None:
        await self.control.close()
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        containers = [peer.docker for peer in self.peers.values() if peer.created]
        for container in containers:
            container.reload()
        engine.discard(containers)
        engine.discard([_docker(network) for network in self.networks.values() if network._network is not None])
        engine.discard(self._volumes)
        self._folder.cleanup()


def _docker(network: Network) -> Any:
    """The Docker library's object behind testcontainers' own."""
    return network._unwrap_network


def _refuse_what_processes_only_have(layout: Layout) -> None:
    default = Layout()
    for name in ("isolation", "via_fleet", "via_serverappio", "via_clientappio", "under"):
        if getattr(layout, name) != getattr(default, name):
            raise ValueError(f"{name} is for federations of processes")
    if stock := [release for release in layout.supernodes if release != TRELLIS]:
        raise ValueError(f"Stock SuperNodes ({', '.join(stock)}) are for federations of processes")
