"""Replies' arrivals are told together, all of them before the run's end, and not any more when nobody wants to know."""

from __future__ import annotations

from typing import Any

from trellis_serverapp.confirmations import Confirmations
from trellis_wire.pb.appio import appio_pb2


class Stub:
    """Takes confirmations as a SuperLink does."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def ConfirmReceived(self, request: appio_pb2.ConfirmReceivedRequest, metadata: Any) -> Any:
        self.calls.append(list(request.message_ids))
        return appio_pb2.ConfirmReceivedResponse()


async def test_what_arrives_together_is_told_in_one_call() -> None:
    stub = Stub()
    confirmations = Confirmations(stub, ())
    for name in "abc":
        confirmations.add(name)
    await confirmations.close()
    assert stub.calls == [["a", "b", "c"]]


async def test_nothing_is_told_when_nothing_arrived() -> None:
    stub = Stub()
    await Confirmations(stub, ()).close()
    assert stub.calls == []


async def test_what_is_abandoned_is_not_told() -> None:
    stub = Stub()
    confirmations = Confirmations(stub, ())
    confirmations.add("a")
    await confirmations.abandon()
    assert stub.calls == []
