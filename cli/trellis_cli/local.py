"""A federation on this machine: started, awaited and ended, for `up` and `demo`."""

import argparse
import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trellis_kit.federation import Addresses, Federation, Plan, StartProblem, port_is_free
from trellis_kit.processes import become_subreaper, kill_descendants

from trellis_cli.connection import Connection, direct
from trellis_cli.control import Control
from trellis_cli.errors import CliError, UsageError
from trellis_cli.output import Output

_START_SECONDS = 120.0  # a cold disk and a busy machine
# Who ends a federation on a desk does not want its runs finished first; the roles are killed a little after their time.
_ROLE_GRACE_SECONDS = 2
_GRACE_SECONDS = _ROLE_GRACE_SECONDS + 6.0


def plan(args: argparse.Namespace, directory: Path, *, stock_ports: bool) -> Plan:
    """What these arguments mean. UsageError for what cannot be started."""
    if args.supernodes < 1:
        raise UsageError("--supernodes: a federation has at least one.")
    guest: Path | None = args.guest_python
    if guest is not None and not guest.exists():
        raise UsageError(f"--guest-python: there is no {guest}; name the python of a virtual environment with flwr.")
    addresses = Addresses.stock(args.supernodes) if stock_ports else Addresses.free(args.supernodes)
    taken = [address for address in addresses.all if not port_is_free(int(address.rsplit(":", 1)[1]))]
    if taken:
        raise UsageError(f"In use already: {', '.join(taken)}. End what listens there, or add --free-ports.")
    flags = ("--insecure", "--grace", str(_ROLE_GRACE_SECONDS))
    return Plan(
        directory=directory,
        addresses=addresses,
        guest_python=None if guest is None else guest.absolute(),
        isolation=args.isolation,
        superlink_flags=flags,
        serverapp_flags=flags,
        supernode_flags=flags,
        clientapp_flags=flags,
    )


@contextmanager
def running(wanted: Plan, out: Output) -> Iterator[Federation]:
    """The federation, ready for runs; ended in order afterwards, whatever happens. CliError when it does not start.

    SIGTERM and SIGHUP end it as Ctrl-C does (KeyboardInterrupt); one more signal while it ends kills at once.
    """
    # SIGINT too: a script's `trellis up &` inherits it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    become_subreaper()  # what an executor might leave behind becomes ours to end
    try:
        federation = Federation(wanted)
    except StartProblem as problem:
        raise CliError(str(problem)) from problem
    try:
        out.note(f"Starting a SuperLink, {wanted.supernodes} SuperNode(s) and their executors ...")
        federation.start()
        asyncio.run(_ready(federation, out))
        yield federation
    except StartProblem as problem:
        raise CliError(str(problem)) from problem
    finally:
        out.note("Stopping the federation ...")
        try:
            asyncio.run(federation.stop(_GRACE_SECONDS))
        finally:  # a second Ctrl-C ends it at once
            federation.kill()
            kill_descendants()


async def _ready(federation: Federation, out: Output) -> None:
    began = time.monotonic()
    wanted = federation.plan.supernodes
    await federation.ready(_START_SECONDS)
    out.note(f"  the SuperLink serves on {federation.plan.addresses.control} ({time.monotonic() - began:.1f} s)")
    with Control(connection_to(federation)) as control:
        seen = 0

        def all_online() -> bool:
            nonlocal seen
            online = sum(node.status == "online" for node in control.list_nodes().nodes_info)
            if online > seen:
                seen = online
                out.note(f"  {online} of {wanted} SuperNodes online ({time.monotonic() - began:.1f} s)")
            return online >= wanted

        await federation.until(all_online, _START_SECONDS, "every SuperNode is online")


def connection_to(federation: Federation) -> Connection:
    """How the command line speaks to this federation."""
    return direct(federation.plan.addresses.control, insecure=True, root_certificates=None)
