"""Kills a role around every reply that passes between two roles, one moment a try."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from books import LEDGER, assert_kept
from trellis_kit.federation import free_ports
from trellis_testing import Layout, ProcessFederation
from trellis_testing.proxy import Exchange, GrpcProxy, Moment
from trellis_wire.config import Scalar
from trellis_wire.pb.edge import fleet_pb2

# A try takes seconds; what takes longer than this hangs.
TRY_SECONDS = 90

# Calls whose number depends on the time that passes, not on what the run does.
BY_THE_CLOCK = ("SendNodeHeartbeat", "Ping", "PushLogs")


@dataclass(frozen=True)
class Reply:
    """The n-th reply of one method in a run, from 1."""

    method: str
    number: int

    def __str__(self) -> str:
        return f"{self.method} {self.number}"


class Counting:
    """Which replies are those that every run of the app sees."""

    def __init__(self) -> None:
        self._asked: set[bytes] = set()  # a node that works asks again and again how its run is

    def __call__(self, exchange: Exchange) -> bool:
        """Wants to see each reply once."""
        if exchange.method == "PullMessages":
            return bool(fleet_pb2.PullMessagesResponse.FromString(exchange.reply).messages_list)
        if exchange.method == "GetRun":
            again = exchange.request in self._asked
            self._asked.add(exchange.request)
            return not again
        return exchange.method not in BY_THE_CLOCK


def replies(exchanges: Iterable[Exchange]) -> list[Reply]:
    """The replies of one run, in order."""
    seen: dict[str, int] = {}
    found = []
    for exchange in filter(Counting(), exchanges):
        seen[exchange.method] = seen.get(exchange.method, 0) + 1
        found.append(Reply(exchange.method, seen[exchange.method]))
    return found


class Killer:
    """Kills a role once, around one reply, and starts it again with the same state."""

    def __init__(self, federation: ProcessFederation, role: str, reply: Reply, moment: Moment) -> None:
        self._peer = federation[role]
        self._reply = reply
        self._moment = moment
        self._counts = Counting()
        self._seen = 0
        self._chosen: Exchange | None = None
        self.killed = False

    async def __call__(self, moment: Moment, exchange: Exchange) -> bool | None:
        if self.killed or exchange.method != self._reply.method:
            return None
        if moment is Moment.BEFORE_REPLY and self._counts(exchange):
            self._seen += 1
            if self._seen == self._reply.number:
                self._chosen = exchange
        if exchange is not self._chosen or moment is not self._moment:
            return None
        self.killed = True
        self._peer.kill()
        self._peer.start()
        return False  # the reply was on its way, and is lost with the connection


@dataclass
class Trial:
    """A federation with a recording proxy at one of its connections, `between`: fleet, serverappio or clientappio."""

    federation: ProcessFederation
    proxy: GrpcProxy
    sites: int
    rounds: int
    overrides: dict[str, Scalar]

    async def run(self) -> None:
        """One run; its books must be right."""
        config = {"rounds": self.rounds, "sites": self.sites, **self.overrides}
        run = await self.federation.run(LEDGER, config)
        async with asyncio.timeout(TRY_SECONDS):
            assert_kept(await run.finished(), sites=self.sites, rounds=self.rounds)

    async def moments(self) -> list[Reply]:
        """The replies that a run of one round sees here, once everything has been fetched that is fetched once."""
        await self.run()
        start = len(self.proxy.exchanges)
        rounds, self.rounds = self.rounds, 1
        await self.run()
        self.rounds = rounds
        return replies(self.proxy.exchanges[start:])

    async def kill_around(self, role: str, moments: Sequence[Reply], around: Sequence[Moment] = tuple(Moment)) -> None:
        """For each reply and each moment: one run in which `role` is killed there."""
        for reply in moments:
            for moment in around:
                killer = Killer(self.federation, role, reply, moment)
                self.proxy.on_reply = killer
                try:
                    await self.run()
                    assert killer.killed, "the moment never came"
                except BaseException as error:
                    error.add_note(f"{role} was to be killed {moment.value}: {reply}")
                    raise
                finally:
                    self.proxy.on_reply = None


class Trials:
    """`async with Trials(...) as trial`: a federation of these SuperNodes behind a proxy."""

    def __init__(
        self, directory: Path, nodes: Sequence[str], between: str, *, rounds: int = 2, **overrides: Scalar
    ) -> None:
        listen = f"127.0.0.1:{free_ports(1)[0]}"
        vias: dict[str, Callable[[], Layout]] = {
            "fleet": lambda: Layout(nodes, via_fleet=listen),
            "serverappio": lambda: Layout(nodes, via_serverappio=listen),
            "clientappio": lambda: Layout(nodes, via_clientappio=listen),
        }
        federation = ProcessFederation(vias[between](), directory)
        upstream = {
            "fleet": federation.addresses.fleet,
            "serverappio": federation.addresses.serverappio,
            "clientappio": next(iter(federation.addresses.clientappio), ""),
        }[between]
        self._trial = Trial(federation, GrpcProxy(listen, upstream), len(nodes), rounds, overrides)

    async def __aenter__(self) -> Trial:
        await self._trial.proxy.start()
        try:
            await self._trial.federation.__aenter__()
        except BaseException:
            await self._trial.proxy.stop()
            raise
        return self._trial

    async def __aexit__(self, *exc: object) -> None:
        await self._trial.federation.__aexit__(*exc)
        await self._trial.proxy.stop()
