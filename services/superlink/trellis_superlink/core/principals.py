"""Who asks. Every call into the core carries a principal, from the first day on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trellis_superlink.core.errors import Forbidden
from trellis_superlink.core.permissions import OF_ACCOUNTS, Permission

SUPERLINK_NODE_ID = 1
"""Node id of the SuperLink itself, and of every ServerApp (Flower 1.20-1.42)."""

DEFAULT_FEDERATION = "default"
"""The federation of all accounts, and of the nodes that no other one holds; edges also take "" and "@none/default"
for it."""


class Kind(StrEnum):
    ACCOUNT = "account"
    NODE = "node"
    EXECUTOR = "executor"
    SYSTEM = "system"


@dataclass(frozen=True)
class Principal:
    """An authenticated caller.

    `id` is the account id, the node id in decimal, or the executor id. `run_id` is set for an executor that speaks
    with the token of a claimed run: it may touch that run only, in that run's `federation`, for its `owner`. `claim`
    then names the claim. `may` is what an account's roles give it: the edges look whether it may ask at all, the core
    how far that reaches.
    """

    kind: Kind
    id: str
    name: str = ""
    run_id: int | None = None
    claim: str = ""
    federation: str = ""
    owner: str = ""
    may: frozenset[Permission] = frozenset()

    @classmethod
    def account(cls, account_id: str, name: str = "", may: frozenset[Permission] = frozenset()) -> Principal:
        return cls(Kind.ACCOUNT, account_id, name, may=may)

    @classmethod
    def node(cls, node_id: int, name: str = "") -> Principal:
        return cls(Kind.NODE, str(node_id), name)

    @classmethod
    def executor(
        cls,
        executor_id: str,
        name: str = "",
        *,
        run_id: int | None = None,
        claim: str = "",
        federation: str = "",
        owner: str = "",
    ) -> Principal:
        return cls(Kind.EXECUTOR, executor_id, name, run_id, claim, federation, owner)

    @property
    def node_id(self) -> int:
        """The node's id; Forbidden for anybody else."""
        if self.kind is not Kind.NODE:
            raise Forbidden("Only a node may ask this.")
        return int(self.id)

    @property
    def run(self) -> int:
        """The run whose token the caller holds; Forbidden for anybody else."""
        if self.run_id is None:
            raise Forbidden("Only the executor of a run may ask this.")
        return self.run_id


SYSTEM = Principal(Kind.SYSTEM, "superlink", "superlink")
NO_ACCOUNT = Principal.account("<id:none>", "none", OF_ACCOUNTS)
"""The one account of a SuperLink without login, which may do everything (ids as stock, Flower 1.26-1.42)."""
