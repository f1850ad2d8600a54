"""What the command line says where TLS stands between it and the SuperLink."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from pki import Authority, Pair
from trellis_cli.main import main


@contextmanager
def serving(pair: Pair | None) -> Iterator[str]:
    """Something that speaks gRPC, by this certificate or without TLS."""
    server = grpc.server(ThreadPoolExecutor(2))
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        credentials = grpc.ssl_server_credentials([(pair.keyfile.read_bytes(), pair.certfile.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", "our-ca")


def said(capsys: pytest.CaptureFixture[str], address: str, *flags: str) -> tuple[int, str]:
    code = main(["ls", "--superlink", address, *flags])
    return code, capsys.readouterr().err


def test_what_is_wrong_with_the_certificate(
    ours: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Authority(tmp_path / "pki", "other-ca")
    roots = ("--root-certificates", str(ours.certfile))
    for pair, told in (
        (other.server(), f"is of a CA that is not in {ours.certfile}"),
        (ours.server("late", days=-1), "has expired"),
        (ours.server("elsewhere", names=("superlink",)), "is not for 127.0.0.1 but for superlink"),
    ):
        with serving(pair) as address:
            code, error = said(capsys, address, *roots)
            assert (code, told in error) == (3, True), error
            code, error = said(capsys, address, "--insecure")
            assert (code, "wants TLS" in error) == (3, True), error


def test_a_superlink_without_tls(ours: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(None) as address:
        code, error = said(capsys, address, "--root-certificates", str(ours.certfile))
        assert (code, f"{address} answers without TLS" in error, "--insecure" in error) == (3, True, True)


def test_a_connection_of_the_file_is_mended_there(
    ours: Authority, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ours.server()) as address:
        config = home / ".flwr" / "config.toml"
        config.parent.mkdir()
        config.write_text(f'[superlink.here]\naddress = "{address}"\ninsecure = true\n')
        assert main(["ls", "here"]) == 3
        error = capsys.readouterr().err
        assert "wants TLS" in error
        assert f"is set in [superlink.here] of {config}" in error


def test_nobody_there_is_no_matter_of_tls(ours: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ours.server()) as address:
        pass
    for flags in (("--insecure",), ("--root-certificates", str(ours.certfile))):
        code, error = said(capsys, address, *flags)
        assert (code, "Nobody answers" in error) == (3, True), error


def test_roots_that_are_no_certificate(ours: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (wrong := tmp_path / "ca.key").write_text("no certificate")
    with serving(ours.server()) as address:
        code, error = said(capsys, address, "--root-certificates", str(wrong))
        assert (code, f"Error: {wrong} holds no CA certificate" in error) == (2, True), error
