"""A server that a test starts as a process; arguments: certificate, key, client CA. Logs JSON to standard error."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from trellis_kit import handshakes, logs, traced  # noqa: F401  (traced: loads gRPC)
from trellis_kit.grpc_server import GrpcServer
from trellis_kit.tls import ServerTls


async def serve(tls: ServerTls) -> None:
    server = GrpcServer("fleet", "127.0.0.1:0", tls)
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    handshakes.listen_in()
    logs.setup("test", format="json")
    paths = [Path(argument) for argument in sys.argv[1:]]
    make: Callable[..., ServerTls] = ServerTls
    asyncio.run(serve(make(*paths)))
