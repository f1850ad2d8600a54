"""The ServerApp process: attends a SuperLink and hosts the runs that it is handed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from trellis_kit import logs, memory, processes
from trellis_kit.lifecycle import EXIT_OK, Stop, run_service
from trellis_kit.settings import load
from trellis_runner.apps import Apps
from trellis_runner.attendance import Attendance
from trellis_runner.executor import Executor
from trellis_runner.host import GuestHost
from trellis_runner.ops import ops_port
from trellis_runner.settings import STOCK_FLAGS, VERSION
from trellis_runner.transfer import without_copies
from trellis_wire.pb.appio import appio_pb2, appio_pb2_grpc

from trellis_serverapp.run import RunHost
from trellis_serverapp.settings import ServerAppSettings

_log = logging.getLogger(__name__)


async def serve(settings: ServerAppSettings, stop: Stop, *, subreaper: bool = False) -> int:
    """Attend until asked to stop (or until the first run is done, with --run-once)."""
    root, temporary = settings.work_root()
    host = GuestHost(settings.guest_settings(root), subreaper=subreaper)
    apps = Apps(root)
    try:
        await host.start_or_fatal()
        async with settings.channel(settings.serverappio_api_address, "--serverappio-api-address") as channel:
            stub = appio_pb2_grpc.ServerAppIOStub(channel)
            without_copies(stub, channel, "trellis.appio.v1.ServerAppIO")
            attendance = Attendance(
                stub.Attend, settings.slots, VERSION, host.flwr_version, settings.join_tokens(), channel.explain
            )

            def begin(work: appio_pb2.Work) -> RunHost:
                return RunHost(work, stub, host, apps)

            async with ops_port(settings.ops_address, attendance):
                await Executor(attendance, begin, stop, once=settings.run_once).run()
    finally:
        await host.stop()
        if temporary:
            apps.close()
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `trellis-serverapp`."""
    settings = load(ServerAppSettings, prog="trellis-serverapp", argv=argv, stock_flags=STOCK_FLAGS)
    logs.setup("serverapp", level=settings.log_level)
    memory.tune()
    processes.make_non_dumpable()
    processes.become_subreaper()

    async def run(stop: Stop) -> int:
        return await serve(settings, stop, subreaper=True)

    sys.exit(run_service(run, grace=settings.grace))


if __name__ == "__main__":
    main()
