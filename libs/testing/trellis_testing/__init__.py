"""Starts Flower federations for tests."""

from trellis_testing.blocking import BlockingFederation
from trellis_testing.containers import ContainerPeer, FederationContainer
from trellis_testing.control import RunHandle, RunResult
from trellis_testing.federation import TRELLIS, Federation, Layout, Peer, ProcessFederation
from trellis_testing.plugin import StartFederation
from trellis_testing.stock import StockCli
from trellis_testing.venvs import StockFlwr

__all__ = [
    "TRELLIS",
    "BlockingFederation",
    "ContainerPeer",
    "Federation",
    "FederationContainer",
    "Layout",
    "Peer",
    "ProcessFederation",
    "RunHandle",
    "RunResult",
    "StartFederation",
    "StockCli",
    "StockFlwr",
]
