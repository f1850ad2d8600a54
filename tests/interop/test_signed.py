"""Apps that somebody signed: stock SuperNodes that ask for it take ours, as our own do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from example_logs import accuracies
from trellis_kit.federation import find_program, free_ports
from trellis_testing import TRELLIS, Layout, ProcessFederation, StockFlwr
from trellis_testing.environment import clean_environment
from trellis_testing.stock import supernode
from trellis_wire.signing import key_id

ONE_ROUND = "num-server-rounds=1 min-sites=2"


@pytest.mark.parametrize(
    ("release", "told"),
    [
        # It makes an error reply and then fails to send it; the SuperLink notices and answers.
        ("1.28.0", "took the instruction 3 times and never answered"),
        ("1.41.0", "The FAB could not be verified."),
    ],
)
async def test_stock_supernodes_take_what_is_signed_and_nothing_else(
    release: str, told: str, digits: Path, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    trusted = tmp_path / "trusted.yaml"
    trusted.write_text(f"{key_id(key.public_key())}: {public}\n")
    layout = Layout(supernodes=(TRELLIS,), supernode_flags=("--trusted-entities", str(trusted)))
    async with ProcessFederation(layout, tmp_path) as federation, asyncio.timeout(300):
        at = federation.addresses
        node = supernode(
            StockFlwr(release),
            "stock",
            tmp_path,
            fleet=at.fleet,
            http=at.http,
            port=free_ports(1)[0],
            node_config="partition-id=1 num-partitions=2",
            flags=("--trusted-entities", str(trusted)),
        )

        async def run(*flags: str) -> tuple[int, str]:
            process = await asyncio.create_subprocess_exec(
                find_program("trellis"),
                *("run", str(digits), "--stream", "--run-config", ONE_ROUND, *flags),
                *("--superlink", at.control, "--insecure"),
                env=clean_environment(tmp_path / "cli", Path(sys.executable).parent),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = await process.communicate()
            return process.returncode or 0, output.decode()

        node.start()
        try:
            code, output = await run("--sign", str(tmp_path / "key"))
            assert code == 0, output
            assert len(accuracies(output)) == 2
            code, output = await run()
            assert "This site's policy takes apps only that somebody it trusts has signed" in output
            assert told in output
            assert "FAB could not be verified" in node.log()
        finally:
            print(node.log()[-8000:])
            await node.stop(10)
