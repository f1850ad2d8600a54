"""Certificates that are renewed under a running run."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

from example_logs import accuracies
from trellis_testing import Layout, ProcessFederation

ROUNDS = 60


def presented(address: str, roots: Path) -> str:
    """The serial number of the certificate that a server shows; its client's part in mutual TLS comes later."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(roots))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        found = connection.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


async def test_renewal_under_a_running_run(digits: Path, tmp_path: Path) -> None:
    """Everything is renewed twice; connections that stand stay, and those made anew are made with the new ones."""
    async with ProcessFederation(Layout(tls=True), tmp_path) as federation:
        certs, at = federation.certs, federation.addresses
        assert certs is not None
        ports = {at.fleet: "ca.crt", at.control: "ca.crt", at.serverappio: "ca.crt", at.clientappio[0]: "site-ca.crt"}

        async def serials() -> dict[str, str]:
            return {
                port: await asyncio.to_thread(presented, port, certs.folder / roots) for port, roots in ports.items()
            }

        run = await federation.run(digits, {"num-server-rounds": ROUNDS, "min-sites": 2})

        async def running() -> bool:
            return await run.status() == "running"

        await federation.until(running, 60, "the run is running")
        before = await serials()
        for again in range(2):
            certs.command("renew", "--all")
            after = await serials()
            assert all(before[port] != after[port] for port in ports), again
            before = after

            async def taken_up(times: int = again + 1) -> bool:
                """By a client that calls all the time."""
                return federation["supernode-1"].log().count("New certificates for connections to") >= times

            await federation.until(taken_up, 30, "the SuperNode has taken up its new certificates")
        # An executor that is there no more comes back, with the new certificate to the new certificate.
        federation["clientapp-2"].kill()
        federation["clientapp-2"].start()
        async with asyncio.timeout(200):
            result = await run.finished()
        assert result.outcome == "completed", result.reason
        assert len(accuracies(result.log)) == ROUNDS + 1
        assert accuracies(result.log)[-1] >= 0.93
        # Nobody was refused on the way but this test, which shows no certificate.
        for service in ("superlink", "supernode-1", "supernode-2"):
            refused = [line for line in federation[service].log().splitlines() if "came to nothing" in line]
            assert not [line for line in refused if "it shows no client certificate" not in line]
