"""Settings of the ServerApp process: ours, and the flags of stock's flwr-serverapp and flower-superexec."""

from pydantic import Field
from trellis_kit.settings import Address
from trellis_runner.settings import ExecutorSettings


class ServerAppSettings(ExecutorSettings):
    """Runs the server side of Flower Apps for a SuperLink, one run at a time."""

    serverappio_api_address: Address = Field(
        "127.0.0.1:9091",
        description="ServerAppIO of the SuperLink, host:port",
        json_schema_extra={"flags": ["--runtime-api-address", "--appio-api-address"]},
    )
    slots: int = Field(1, ge=1, description="Runs that are hosted at once, each in a process of its own")
