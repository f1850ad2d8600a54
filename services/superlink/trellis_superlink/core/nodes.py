"""Nodes: both life cycles of the edge protocol, liveness by heartbeat, adoption of unknown signed pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from trellis_superlink.core.principals import Principal


class NodeStatus(StrEnum):
    """As the command line shows them (Flower 1.23-1.42)."""

    REGISTERED = "registered"
    ONLINE = "online"
    OFFLINE = "offline"
    UNREGISTERED = "unregistered"


@dataclass(frozen=True)
class Node:
    """Times are Unix seconds."""

    node_id: int
    public_key: bytes
    owner_id: str
    owner_name: str
    name: str
    location: str
    status: NodeStatus
    registered_at: float
    activated_at: float | None
    deactivated_at: float | None
    unregistered_at: float | None
    online_until: float | None
    heartbeat_interval: float


class Nodes:
    async def create(self, public_key: bytes, heartbeat_interval: float) -> int:
        """CreateNode (Flower 1.20-1.22): registers the key if it is new and brings the node online."""

    async def delete(self, who: Principal) -> None:
        """DeleteNode (Flower 1.20-1.22): a self-registered node goes away, an operator's goes offline."""

    async def register(self, public_key: bytes) -> int:
        """RegisterNode on Fleet (1.23 on): by the node itself. The same key again gives the same id.
        RegistrationClosed; KeyInUse when an operator registered it."""

    async def activate(self, public_key: bytes, heartbeat_interval: float) -> int:
        """ActivateNode (1.23 on): online until two intervals from now. NotFound for an unknown key, BadInterval."""

    async def deactivate(self, who: Principal) -> None:
        """DeactivateNode (1.23 on): offline now; what it had to do gets error 5."""

    async def enrol(self, who: Principal, public_key: bytes, *, name: str = "", location: str = "") -> int:
        """RegisterNode on Control, by an account. KeyInvalid, KeyInUse."""

    async def unregister(self, who: Principal, node_id: int) -> None:
        """Ends the node for good; by an account (Control) or the node itself (Fleet: RegistrationClosed when the
        operator registers). NotFound."""

    async def authenticate(self, node_id: int, public_key: bytes) -> Principal:
        """The node that this validly signed key speaks for. An unknown pair is adopted where registration is open
        (WIRE.md 2.5); Unauthenticated otherwise, or when either half belongs to another."""

    def heartbeat(self, who: Principal, interval: float | None = None) -> None:
        """The node lives: online for two more intervals (its last known one if None). Never waits; written in
        batches. BadInterval is raised for an interval outside 10..1800 s."""

    async def list(self, who: Principal) -> list[Node]:
        """All nodes that are not unregistered, oldest first."""

    async def available(self, who: Principal) -> Sequence[Node]:
        """The nodes online in the federation of the caller's run (GetNodes)."""
