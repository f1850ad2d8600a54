"""Our services refuse each other where TLS says so, and both logs name the cause."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from pki import Authority
from trellis_kit.federation import Role, find_program
from trellis_testing import TRELLIS, Layout, ProcessFederation, StockFlwr
from trellis_testing.environment import clean_environment
from waits import until


class Site:
    """A federation over TLS, its certificates, and strangers that want to join it."""

    def __init__(self, federation: ProcessFederation, folder: Path) -> None:
        assert federation.certs is not None
        self.federation, self.folder, self.certs = federation, folder, federation.certs.folder
        self.strangers: list[Role] = []

    @contextlib.asynccontextmanager
    async def stranger(self, program: str, *flags: str) -> AsyncIterator[Role]:
        """A role that is started with these flags."""
        name = f"stranger-{len(self.strangers)}"
        environment = clean_environment(self.folder / "home", Path(sys.executable).parent)
        argv = (find_program(program), *flags)
        role = Role(name, argv, env=environment, cwd=self.folder / name, log_path=self.folder / "logs" / f"{name}.log")
        self.strangers.append(role)
        role.start()
        try:
            yield role
        finally:
            await role.stop(5)

    async def supernode(self, roots: Path, here: str, there: str) -> None:
        """A SuperNode that trusts `roots` is refused, `here` in its words and `there` in the SuperLink's."""
        flags = ("--superlink", self.federation.addresses.fleet, "--root-certificates", str(roots), "--appio-insecure")
        async with self.stranger("trellis-supernode", *flags, "--clientappio-api-address", "127.0.0.1:0") as role:
            await self.told(role, here, "superlink", there)

    async def executor(self, kind: str, flags: tuple[str, ...], here: str, there: str) -> None:
        """An executor is refused by its service."""
        at = self.federation.addresses
        address, service = (at.serverappio, "superlink") if kind == "serverapp" else (at.clientappio[0], "supernode-1")
        flags = (f"--{kind}io-api-address", address, *flags)
        python = str(StockFlwr(self.federation.layout.guest).python)
        async with self.stranger(f"trellis-{kind}", *flags, "--guest-python", python) as role:
            await self.told(role, here, service, there)

    def shown(self, role: str, roots: str | None = None) -> tuple[str, ...]:
        """Flags with the certificate of a role; it trusts `roots`."""
        own = self.certs / role
        trusted = self.certs / (roots or f"{role}/ca.crt")
        return (
            *("--certfile", str(own / "tls.crt"), "--keyfile", str(own / "tls.key")),
            *("--root-certificates", str(trusted)),
        )

    async def told(self, role: Role, here: str, service: str, there: str) -> None:
        await until(lambda: here in role.log(), lambda: f"{here!r} of {role.name}:\n{role.log()}", 40)
        log = self.federation[service].log
        await until(lambda: there in log(), lambda: f"{there!r} of {service}:\n{log()[-3000:]}", 40)


@contextlib.asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    async with ProcessFederation(Layout(supernodes=(TRELLIS,), tls=True), folder) as federation:
        yield Site(federation, folder)


async def test_supernodes_that_do_not_trust_the_superlink(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.supernode(
            here.certs / "site-ca.crt",
            f"is of a CA that is not in {here.certs / 'site-ca.crt'}",
            "it does not trust the CA of this port's certificate",
        )
        # The SuperLink takes up other certificates while it runs.
        other, superlink = Authority(tmp_path / "other", "other-ca"), here.certs / "superlink"
        for made, there, told in (
            (
                other.server("elsewhere", names=("elsewhere",)),
                "it came by a name that is not in it: elsewhere",
                "is not for 127.0.0.1 but for elsewhere",
            ),
            (other.server("late", days=-1), "to it, this port's certificate has expired", "has expired"),
        ):
            made.keyfile.replace(superlink / "tls.key")
            made.certfile.replace(superlink / "tls.crt")
            await here.supernode(other.certfile, told, there)
        assert "tls.crt has expired on" in here.federation["superlink"].log()  # it knows by itself, too


async def test_executors_without_the_right_certificate(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        other_ca = "its certificate is of a CA that this port does not trust"
        await here.executor(
            "serverapp",
            here.shown("clientapp-1", roots="ca.crt"),
            "which 'Trellis site CA' issued: is that the CA that it trusts for clients?",
            other_ca,
        )
        await here.executor(
            "clientapp",
            here.shown("serverapp", roots="site-ca.crt"),
            "which 'Trellis ServerApp CA' issued: is that the CA that it trusts for clients?",
            other_ca,
        )
        await here.executor(
            "clientapp",
            ("--root-certificates", str(here.certs / "site-ca.crt")),
            "wants a client certificate: give --certfile and --keyfile",
            "it shows no client certificate",
        )
        await here.executor(
            "serverapp",
            ("--insecure",),
            "wants TLS: give --root-certificates in place of --insecure",
            "it does not speak TLS",
        )
        await here.executor(
            "clientapp",
            here.shown("supernode-1", roots="site-ca.crt"),
            "is not made for clients",
            "its certificate is not made for clients",
        )
        other = Authority(tmp_path / "other", "other-ca")
        (here.certs / "supernode-1" / "executor-ca.crt").write_bytes(other.certfile.read_bytes())
        expired = other.client(days=-1)
        await here.executor(
            "clientapp",
            (
                *("--certfile", str(expired.certfile), "--keyfile", str(expired.keyfile)),
                *("--root-certificates", str(here.certs / "site-ca.crt")),
            ),
            "client.crt has expired on",
            "its certificate has expired",
        )
