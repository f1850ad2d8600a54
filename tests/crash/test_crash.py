"""kill -9 of each role around the replies of a round: the run completes, and every reply counts once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from example_logs import accuracies
from trellis_kit.federation import free_ports
from trellis_testing import TRELLIS, Layout, ProcessFederation
from trellis_testing.proxy import Exchange, GrpcProxy, Moment

ROUNDS = 3
EXPECTED = 0.93

# The replies of a round, as our own SuperNode and our ServerApp process see them.
FLEET = [("PullMessages", 3), ("PushMessages", 1), ("PushMessages", 3), ("ConfirmMessageReceived", 1)]
SERVERAPPIO = [("PushMessages", 1), ("PushMessages", 2), ("StreamReplies", 1), ("StreamReplies", 3)]


class Killer:
    """Kills a role once, around one reply, and starts it again."""

    def __init__(self, federation: ProcessFederation, role: str, method: str, number: int, moment: Moment) -> None:
        self._federation = federation
        self._role = role
        self._at = (method, number, moment)
        self.killed = False

    async def __call__(self, moment: Moment, exchange: Exchange) -> bool | None:
        if self.killed or (exchange.method, exchange.number, moment) != self._at:
            return None
        self.killed = True
        self._federation[self._role].kill()
        self._federation[self._role].start()
        return False  # a reply that was on its way is lost with the connection


async def survives(
    directory: Path,
    app: Path,
    *,
    between: str,
    role: str,
    method: str,
    number: int,
    moment: Moment,
    node: str = TRELLIS,
) -> None:
    """One run with one crash."""
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    layout = Layout(supernodes=(TRELLIS, node), **{f"via_{between}": listen})  # type: ignore[arg-type]
    federation = ProcessFederation(layout, directory)
    proxy = GrpcProxy(listen, getattr(federation.addresses, between))
    await proxy.start()
    try:
        async with federation:
            proxy.on_reply = killer = Killer(federation, role, method, number, moment)
            run = await federation.run(app, {"num-server-rounds": ROUNDS, "min-sites": 2})
            async with asyncio.timeout(150):
                result = await run.finished()
            assert killer.killed, "the moment never came"
            assert result.outcome == "completed", result.reason
            assert accuracies(result.log)[-1] >= EXPECTED
            # Two replies and no failure in each of the two phases of each round: none lost, none twice.
            assert result.log.count("Received 2 results and 0 failures") == 2 * ROUNDS
    finally:
        await proxy.stop()


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.name.lower())
@pytest.mark.parametrize(("method", "number"), FLEET)
async def test_superlink_killed_around_a_reply_to_a_node(
    method: str, number: int, moment: Moment, digits: Path, tmp_path: Path
) -> None:
    await survives(tmp_path, digits, between="fleet", role="superlink", method=method, number=number, moment=moment)


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.name.lower())
@pytest.mark.parametrize(("method", "number"), SERVERAPPIO)
async def test_superlink_killed_around_a_reply_to_the_serverapp(
    method: str, number: int, moment: Moment, digits: Path, tmp_path: Path
) -> None:
    await survives(
        tmp_path, digits, between="serverappio", role="superlink", method=method, number=number, moment=moment
    )


async def test_superlink_killed_with_a_stock_node(digits: Path, tmp_path: Path) -> None:
    await survives(
        tmp_path,
        digits,
        between="fleet",
        role="superlink",
        method="PushMessages",
        number=2,
        moment=Moment.BEFORE_REPLY,
        node="1.24.0",
    )


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.name.lower())
@pytest.mark.parametrize(("method", "number"), [("PullMessages", 1), ("PushMessages", 1)])
async def test_supernode_killed(method: str, number: int, moment: Moment, digits: Path, tmp_path: Path) -> None:
    await survives(tmp_path, digits, between="fleet", role="supernode-1", method=method, number=number, moment=moment)


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.name.lower())
async def test_clientapp_killed(moment: Moment, digits: Path, tmp_path: Path) -> None:
    await survives(
        tmp_path, digits, between="fleet", role="clientapp-1", method="ConfirmMessageReceived", number=2, moment=moment
    )
