"""Idle SuperNodes, many in one process: each with its own key and connection, heartbeats, and a held PullMessages.

Behaves as stock nodes of 1.23-1.39 do: every call signed, 3 s of sleep after an empty pull, a heartbeat each
17.5-22.5 s. Prints READY when all are registered and pulling, then goes on until it is ended.
"""

import argparse
import asyncio
import random

import grpc
from trellis_wire.identity import generate_key, public_pem, sign_headers_grpc
from trellis_wire.pb.edge import fleet_pb2, fleet_pb2_grpc, node_pb2

INTERVAL = 30.0  # seconds between heartbeats, as announced by stock nodes
AT_ONCE = 20  # registrations under way at a time


async def _node(address: str, start: asyncio.Semaphore, pulling: "asyncio.Queue[None]") -> None:
    key = generate_key("P-384")
    pem = public_pem(key)
    # A pool of its own: without it, grpc would put all nodes of this process on one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        fleet = fleet_pb2_grpc.FleetStub(channel)
        async with start:
            await fleet.RegisterNode(
                fleet_pb2.RegisterNodeFleetRequest(public_key=pem), metadata=sign_headers_grpc(key)
            )
            activation = fleet_pb2.ActivateNodeRequest(public_key=pem, heartbeat_interval=INTERVAL)
            active = await fleet.ActivateNode(activation, metadata=sign_headers_grpc(key))
        node = node_pb2.Node(node_id=active.node_id)

        async def heartbeats() -> None:
            while True:
                beat = fleet_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=INTERVAL)
                await fleet.SendNodeHeartbeat(beat, metadata=sign_headers_grpc(key), timeout=30)
                await asyncio.sleep((INTERVAL - 5.0) * random.uniform(0.7, 0.9))

        async def pulls() -> None:
            await asyncio.sleep(random.uniform(0.0, 3.0))
            pulling.put_nowait(None)
            while True:
                await fleet.PullMessages(fleet_pb2.PullMessagesRequest(node=node), metadata=sign_headers_grpc(key))
                await asyncio.sleep(3.0)

        await asyncio.gather(heartbeats(), pulls())


async def main(address: str, count: int) -> None:
    """Run so many nodes until one of them fails."""
    start, pulling = asyncio.Semaphore(AT_ONCE), asyncio.Queue[None]()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_node(address, start, pulling))
        for _ in range(count):
            await pulling.get()
        print("READY", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--superlink", required=True, help="host:port of the Fleet service")
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.superlink, arguments.count))
