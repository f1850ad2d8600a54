"""What flwr-serverapp and flwr-clientapp have in common: settings, stock's flags, the connection, the guest."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field
from trellis_kit.channel import Channel, open_channel
from trellis_kit.lifecycle import Fatal
from trellis_kit.renewable import Renewable
from trellis_kit.settings import Address, Bytes, Seconds, Settings, StockFlag
from trellis_kit.tls import ClientTls

from trellis_runner.host import GuestSettings, Sandbox


class ExecutorSettings(Settings):
    """Settings of every executor."""

    insecure: bool = Field(False, description="Connect without TLS")
    root_certificates: Path | None = Field(
        None, description="PEM file of the CA that signed the other side's certificate"
    )
    certfile: Path | None = Field(None, description="Certificate that this executor shows")
    keyfile: Path | None = Field(None, description="Private key of --certfile")
    join_token: str | None = Field(
        None, description="File with the secret that lets this executor attend", json_schema_extra={"secret": True}
    )
    guest_python: Path | None = Field(
        None, description="Interpreter that hosts the apps, with their flwr; default: the first python on PATH"
    )
    app_env: list[str] = Field([], description="Environment variable that apps may see; may be given several times")
    app_secret: list[Path] = Field(
        [], description="File that apps may read; its path is in APP_SECRET_<NAME>; may be given several times"
    )
    app_hidden: list[Path] = Field(
        [],
        description="File or folder that apps can neither read nor change, besides this executor's own secrets; may be "
        "given several times",
    )
    guest_sandbox: Sandbox = Field(
        "try",
        description="The fence around apps (Landlock). enforce: this executor does not start where there is none; "
        "try: it warns; off: apps reach all that this executor's user can reach",
    )
    guest_memory: Bytes | None = Field(
        None, description="Address space of a guest, for example 4GiB; default: no limit"
    )
    guest_cpus: int | None = Field(None, ge=1, description="Processors that a guest may use; default: all")
    work_dir: Path | None = Field(None, description="Where apps are unpacked and run; default: a temporary folder")
    ops_address: Address | None = Field(None, description="Serve /livez, /readyz and /metrics here; default: off")
    run_once: bool = Field(False, description="End after the first piece of work")
    grace: Seconds = Field(30.0, description="Time to finish or hand back work on SIGTERM")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="How much to log")

    def channel(self, address: str, flag: str) -> Channel:
        """The connection to `address`. Raises Fatal where neither TLS nor --insecure is chosen."""
        if self.insecure:
            if self.root_certificates or self.certfile or self.keyfile:
                raise Fatal("Give either --insecure or certificates, not both.")
            return open_channel(address, None, use_proxy=False)
        if self.root_certificates is None:
            raise Fatal(
                f"Neither TLS nor --insecure is set for {flag} {address}. Give --root-certificates (and --certfile and "
                "--keyfile where the other side wants them), or --insecure where everybody on the network is trusted."
            )
        return open_channel(address, ClientTls(self.root_certificates, self.certfile, self.keyfile), use_proxy=False)

    def work_root(self) -> tuple[Path, bool]:
        """Where everything of this executor lies, and whether it goes away with it."""
        if self.work_dir is not None:
            return self.work_dir.absolute(), False
        # Beside a hidden folder apps cannot make files, and they may count on /tmp.
        place = _PLACE if os.access(_PLACE, os.W_OK) else None
        return Path(tempfile.mkdtemp(prefix="trellis-executor-", dir=place)), True

    def join_tokens(self) -> Renewable | None:
        """What this executor shows, as renewed as its file is."""
        return None if self.join_token is None else Renewable(self.join_token, self.secret_file("join_token"))

    def guest_settings(self, root: Path) -> GuestSettings:
        """How guests are hosted. Raises Fatal where there is no interpreter."""
        python = self.guest_python
        if python is None:
            found = shutil.which("python")
            if found is None:
                raise Fatal(
                    "There is no python on PATH to host apps; name the interpreter of a virtual environment with flwr: "
                    "--guest-python /path/to/venv/bin/python"
                )
            python = Path(found)
        # Not resolved: a virtual environment's python is a link, and the link's place is what makes it one.
        return GuestSettings(
            python=python.absolute(),
            work_root=root,
            app_env=self.app_env,
            app_secrets=self.app_secret,
            hidden=(*self.secret_files, *(() if self.keyfile is None else (self.keyfile,)), *self.app_hidden),
            sandbox=self.guest_sandbox,
            memory=self.guest_memory,
            cpus=self.guest_cpus,
        )


_PLACE = "/var/tmp"

_TOKENS = "executors get a token for each run they are handed"
_INSTALL = "the environment of apps is the one of --guest-python"

STOCK_FLAGS = (
    StockFlag(("--token",), True, _TOKENS),
    StockFlag(("--token-file",), True, _TOKENS),
    StockFlag(("--flwr-dir",), True, "apps are unpacked below --work-dir"),
    StockFlag(("--parent-pid",), True, "a process that is started by another ends with it anyway"),
    StockFlag(("--plugin-type",), True, "the program itself says which side of an app it hosts"),
    StockFlag(("--executor",), True, "apps are hosted in guest processes"),
    StockFlag(("--executor-config",), True, "apps are hosted in guest processes"),
    StockFlag(("--superexec-auth-secret-file",), True, "use --join-token-file"),
    StockFlag(("--health-server-address",), True, "an executor has no port; ask its SuperLink or SuperNode"),
    StockFlag(("--allow-runtime-dependency-installation",), False, _INSTALL),
    StockFlag(("--disable-runtime-dependency-installation",), False, _INSTALL),
)

VERSION = "0.1.0"
