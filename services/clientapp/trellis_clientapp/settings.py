"""Settings of the ClientApp process: ours, and the flags of stock's flwr-clientapp and flower-superexec."""

from typing import Literal

from pydantic import Field
from trellis_kit.settings import Address
from trellis_runner.settings import ExecutorSettings


class ClientAppSettings(ExecutorSettings):
    """Runs the client side of Flower Apps for a SuperNode."""

    clientappio_api_address: Address = Field(
        "127.0.0.1:9094",
        description="ClientAppIO of the SuperNode, host:port",
        json_schema_extra={"flags": ["--runtime-api-address", "--appio-api-address"]},
    )
    slots: int = Field(1, ge=1, description="Messages that are worked on at once, each in a process of its own")
    guest_lifetime: Literal["message", "run"] = Field(
        "message", description="A fresh process for each message, as stock does, or one for all messages of a run"
    )
