"""The SuperLink's settings, and the flags of Flower's own program that mean nothing here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from trellis_kit.settings import Address, Seconds, Settings, StockFlag, split_address

from trellis_superlink.edges.versions import Version, parse

TEMPORARY_DATABASES = frozenset({":memory:", ":flwr-in-memory:", ":flwr-in-memory-state:", ""})


class SuperLinkSettings(Settings):
    """The SuperLink: takes runs from command lines, hands messages to SuperNodes and runs to ServerApp executors."""

    insecure: bool = Field(False, description="Serve without TLS")
    ssl_certfile: Path | None = Field(None, description="Certificate chain (PEM) for Fleet and Control")
    ssl_keyfile: Path | None = Field(None, description="Private key (PEM) of the certificate")
    ssl_ca_certfile: Path | None = Field(
        None, description="The CA certificate that peers trust; accepted as on stock, the server itself needs it not"
    )

    appio_certfile: Path | None = Field(
        None, description="Certificate chain (PEM) for ServerAppIO (default: --ssl-certfile)"
    )
    appio_keyfile: Path | None = Field(None, description="Private key of --appio-certfile (default: --ssl-keyfile)")
    executor_ca_certfile: Path | None = Field(
        None, description="CA of the executors' client certificates; with it, executors must show one"
    )
    appio_insecure: bool = Field(False, description="Serve ServerAppIO without TLS, whatever the other ports do")

    serverappio_api_address: Address = Field("0.0.0.0:9091", description="Where ServerApp executors connect")
    fleet_api_address: Address = Field("0.0.0.0:9092", description="Where SuperNodes connect")
    control_api_address: Address = Field(
        "0.0.0.0:9093",
        description="Where command lines connect",
        json_schema_extra={"flags": ["--exec-api-address"]},
    )
    host: str = Field("0.0.0.0", description="Where SuperNodes from 1.40 and `flwr` from 1.37 connect")
    port: int = Field(8000, ge=0, le=65535, description="Port of the HTTP edge; 0 takes a free one")
    health_server_address: Address | None = Field(
        None, description="A port of its own for gRPC health checks; each other port answers them too"
    )
    ops_address: Address | None = Field(None, description="Where /livez, /readyz and /metrics are served over HTTP")

    database: str = Field(
        ":memory:",
        description="Path of the SQLite database; :memory: keeps everything in files that go with the process",
    )
    storage_dir: Path | None = Field(None, description="Folder for large objects (beside the database if not given)")
    public_url: str | None = Field(
        None,
        description="Where the HTTP edge is reached from outside, for links to what runs left behind: https://host:port",
    )
    assume_cli_version: str | None = Field(
        None,
        description="What release `flwr` has where it does not say (before 1.30), for example 1.23",
    )
    artifact_limit: int = Field(4 * 1024**3, ge=0, description="Bytes of files that a run may leave behind")
    runs_per_account: int | None = Field(None, ge=1, description="Unfinished runs that an account may have at once")
    bytes_per_account: int | None = Field(
        None, ge=0, description="Bytes that an account's runs may keep here: apps, messages, what they leave behind"
    )
    retention: Seconds | None = Field(None, description="Finished runs older than this are pruned, for example 30d")

    enable_supernode_auth: bool = Field(
        False, description="Only SuperNodes whose key an operator registered (flwr supernode register) may join"
    )
    auth_list_public_keys: Path | None = Field(
        None,
        description="File with the public keys (OpenSSH, commas or line ends between) of SuperNodes that may join; "
        "read at the start; implies --enable-supernode-auth",
    )
    unknown_supernodes: Literal["admit", "hold", "refuse"] | None = Field(
        None,
        description="What becomes of SuperNodes that no operator registered: hold has them wait for "
        "`trellis supernode approve` (default: admit, with --enable-supernode-auth refuse)",
    )
    join_token: str | None = Field(
        None, description="File with the secret that executors must show", json_schema_extra={"secret": True}
    )

    oidc_issuer: str | None = Field(
        None,
        description="OpenID Connect provider that accounts log in at, as browsers and its tokens name it: "
        "https://login.example.org/realms/trellis",
    )
    oidc_internal_url: str | None = Field(
        None, description="Where the SuperLink reaches the provider, if elsewhere than at --oidc-issuer"
    )
    oidc_client_id: str | None = Field(None, description="The SuperLink's client at the provider (default: trellis)")
    oidc_client_secret: str | None = Field(
        None, description="File with the client's secret, if it has one", json_schema_extra={"secret": True}
    )
    oidc_audience: tuple[str, ...] = Field(
        (), description="Further clients or audiences whose tokens are accepted, such as service accounts'"
    )
    oidc_scope: str = Field(
        "openid", description="What a login asks for; add offline_access where logins shall outlive the session"
    )
    oidc_roles_claim: str | None = Field(
        None,
        description="Dotted path to the roles in a token, such as groups (default: where Keycloak has realm and client "
        "roles)",
    )
    oidc_ca_certfile: Path | None = Field(None, description="CA of the provider's certificate (default: the system's)")
    account_auth_config: Path | None = Field(
        None,
        description="Stock's YAML file for account login, in place of --oidc-issuer and --oidc-client-...",
        json_schema_extra={"flags": ["--user-auth-config"]},
    )
    roles_file: Path | None = Field(None, description="TOML file that says which role gives which permissions")
    audit_log: str | None = Field(
        None, description="File for the audit log, as JSON lines; - is standard output (default: there is none)"
    )

    isolation: Literal["process", "subprocess"] = Field(
        "process", description="Whether executors are started by others or by the SuperLink itself"
    )
    guest_python: Path | None = Field(
        None, description="Interpreter that hosts the apps, with subprocess isolation (default: the python on PATH)"
    )
    guest_sandbox: Literal["enforce", "try", "off"] = Field(
        "try", description="The fence around apps, with subprocess isolation"
    )
    grace: Seconds = Field(20.0, description="Time to end in order after SIGTERM")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What is logged at least")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="JSON lines, text, or by whether it is a terminal"
    )

    @field_validator("assume_cli_version")
    @classmethod
    def _release(cls, value: str | None) -> str | None:
        if value is not None and parse(value) is None:
            raise ValueError("give a release of Flower such as 1.24")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @property
    def assumed_cli(self) -> Version | None:
        """The release of command lines that do not say theirs; None: whichever."""
        return None if self.assume_cli_version is None else parse(self.assume_cli_version)

    @property
    def database_path(self) -> Path | None:
        """None: temporary."""
        return None if self.database in TEMPORARY_DATABASES else Path(self.database)

    @property
    def appio_address(self) -> str:
        """Where ServerAppIO listens: for the SuperLink's own executor on the loopback only."""
        _, port = split_address(self.serverappio_api_address)
        return f"127.0.0.1:{port}" if self.isolation == "subprocess" else self.serverappio_api_address

    @property
    def guest(self) -> str:
        """The interpreter for apps."""
        return str(self.guest_python) if self.guest_python else shutil.which("python") or sys.executable


def _valued(*names: str, note: str) -> StockFlag:
    return StockFlag(names, takes_value=True, note=note)


def _switch(*names: str, note: str) -> StockFlag:
    return StockFlag(names, takes_value=False, note=note)


_EXECUTORS = "executors connect by themselves here; see --isolation."
_DEPENDENCIES = "apps run in the environment of their executor; nothing is installed at run time."
_LOG_FILE = "logs go to stderr; let the platform keep them."

STOCK_FLAGS = (
    _valued("--flwr-dir", note="FABs are kept in the database."),
    _valued("--auth-superlink-private-key", note="SuperNodes sign with their own key only, as from Flower 1.20 on."),
    _valued("--auth-superlink-public-key", note="SuperNodes sign with their own key only, as from Flower 1.20 on."),
    _valued("--fleet-api-type", note="Fleet is served over gRPC request-response (grpc-rere)."),
    _valued("--fleet-api-num-workers", note="one process serves all SuperNodes."),
    _valued("--executor", note=_EXECUTORS),
    _valued("--executor-dir", note=_EXECUTORS),
    _valued("--executor-config", note=_EXECUTORS),
    _valued("--simulationio-api-address", note="there are no simulations here."),
    _switch("--simulation", note="there are no simulations here."),
    _switch("--disable-runtime-dependency-installation", note=_DEPENDENCIES),
    _switch("--allow-runtime-dependency-installation", note=_DEPENDENCIES),
    _valued("--log-file", note=_LOG_FILE),
    _valued("--log-rotation-interval-hours", note=_LOG_FILE),
    _valued("--log-rotation-backup-count", note=_LOG_FILE),
    _valued("--superexec-auth-secret-file", note="executors show the token of --join-token-file."),
    _switch("--enable-http-api", note="the HTTP edge is always served."),
    _switch("--disable-grpc-api", note="gRPC is always served beside HTTP."),
)
