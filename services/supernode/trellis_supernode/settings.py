"""The SuperNode's settings: our flags, and those of stock's `flower-supernode` (1.20-1.42)."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from trellis_kit.settings import Address, Seconds, Settings, StockFlag, split_address
from trellis_wire.config import parse_config_args

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class SupernodeSettings(Settings):
    """Where the SuperLink is, who this node is, and how executors reach it."""

    superlink: Address = Field("127.0.0.1:9092", description="Fleet API of the SuperLink, host:port")
    insecure: bool = Field(False, description="Talk to the SuperLink without TLS")
    root_certificates: Path | None = Field(
        None, description="PEM file of the CA that signed the SuperLink's certificate"
    )
    auth_supernode_private_key: Path | None = Field(
        None,
        description="This node's private key (OpenSSH or PEM, NIST curve); default: made once, kept in --state-dir",
    )
    node_config: str = Field("", description="Values that apps on this node see, as 'key=value key2=\"a b\"'")
    state_dir: Path = Field(
        Path("trellis-supernode"),
        description="Where this node keeps its key, the contexts of runs, and work that is not delivered yet",
    )
    clientappio_api_address: Address = Field("0.0.0.0:9094", description="Where executors (clientapp) reach this node")
    host: str | None = Field(None, description="Host part of --clientappio-api-address")
    port: int | None = Field(None, ge=0, le=65535, description="Port part of --clientappio-api-address")
    ssl_certfile: Path | None = Field(None, description="Certificate of this node's ClientAppIO")
    ssl_keyfile: Path | None = Field(None, description="Private key of --ssl-certfile")
    ssl_ca_certfile: Path | None = Field(
        None, description="CA that signed --ssl-certfile, for the executor that this node starts itself"
    )
    appio_insecure: bool = Field(
        False, description="Serve ClientAppIO without TLS, whatever the connection to the SuperLink does"
    )
    executor_ca_certfile: Path | None = Field(
        None, description="CA of the executors' client certificates; with it, executors must show one"
    )
    join_token: str | None = Field(
        None, description="File with the secret that executors have to show", json_schema_extra={"secret": True}
    )
    isolation: Literal["process", "subprocess"] = Field(
        "process", description="Executors are started by the operator (process) or by this node (subprocess)"
    )
    guest_python: Path | None = Field(
        None, description="Interpreter that hosts the apps, handed to the executor that this node starts"
    )
    guest_sandbox: Literal["enforce", "try", "off"] = Field(
        "try", description="The fence around apps, handed to the executor that this node starts"
    )
    executor_slots: int = Field(1, ge=1, description="Messages that the executor started by this node works on at once")
    policy: Path | None = Field(None, description="TOML file that says which runs may use this site")
    trusted_entities: Path | None = Field(
        None,
        description="YAML file {name: 'ssh-ed25519 ...'}: only apps that one of these keys has signed may run here",
    )
    reply_filter: str | None = Field(
        None, description="MODULE:FUNCTION that looks at each reply before it leaves this site, and may change it"
    )
    audit_log: str | None = Field(
        None, description="File (or - for standard output) with a line for each run that was let in or refused"
    )
    max_retries: int | None = Field(
        None, ge=0, description="End after this many failed attempts to reach the SuperLink; default: never"
    )
    max_wait_time: Seconds | None = Field(
        None, description="End when the SuperLink could not be reached for this long; default: never"
    )
    ops_address: Address | None = Field(None, description="Serve /livez, /readyz and /metrics here; default: off")
    health_server_address: Address | None = Field(None, description="Serve gRPC health here too; default: off")
    grace: Seconds = Field(30.0, description="Time to finish or hand back work on SIGTERM")
    log_level: Level = Field("INFO", description="How much to log")

    @field_validator("node_config")
    @classmethod
    def _parsable(cls, value: str) -> str:
        parse_config_args([value] if value else [])
        return value

    @property
    def only_own_executor(self) -> bool:
        """Whether no other executor than this node's own is meant to come."""
        return self.isolation == "subprocess" and self.join_token is None and self.ssl_certfile is None

    @property
    def appio_address(self) -> str:
        """`--clientappio-api-address`, with `--host` and `--port` over it.

        Where the only executor is this node's own, on the loopback only.
        """
        host, port = split_address(self.clientappio_api_address)
        host = "127.0.0.1" if self.only_own_executor else self.host if self.host is not None else host
        bracketed = f"[{host}]" if ":" in host else host
        return f"{bracketed}:{self.port if self.port is not None else port}"


_GRPC = "this node speaks Fleet over gRPC, as stock does by default"
_INSTALL = "the environment of apps is the one of --guest-python"

STOCK_FLAGS = (
    StockFlag(("--grpc-rere",), False, _GRPC),
    StockFlag(("--grpc-adapter",), False, f"{_GRPC}; the adapter's wrapping is not used"),
    StockFlag(("--flwr-dir",), True, "everything this node keeps is in --state-dir"),
    StockFlag(("--auth-supernode-public-key",), True, "the public key follows from the private key"),
    StockFlag(("--superexec-auth-secret-file",), True, "executors show the secret of --join-token-file"),
    StockFlag(("--allow-runtime-dependency-installation",), False, _INSTALL),
    StockFlag(("--disable-runtime-dependency-installation",), False, _INSTALL),
)

REST_REFUSED = (
    "--rest: the HTTP transport of Flower up to 1.32 is not spoken by this SuperNode; leave the flag out and give "
    "--superlink the Fleet gRPC address (port 9092)"
)
