"""What may be asked for. Each rpc of each edge is behind exactly one of these (edges/permissions.py)."""

from __future__ import annotations

from enum import StrEnum


class Permission(StrEnum):
    """Accounts get the first group from their roles; the second comes with a standing that no role gives."""

    RUNS_START = "runs.start"
    RUNS_SEE = "runs.see"  # one's own: their state, their log, what they left behind
    RUNS_STOP = "runs.stop"  # one's own
    ALL_RUNS_SEE = "all-runs.see"  # runs.see reaches everybody's runs
    ALL_RUNS_STOP = "all-runs.stop"  # runs.stop reaches everybody's runs
    NODES_SEE = "nodes.see"
    NODES_MANAGE = "nodes.manage"
    FEDERATIONS_SEE = "federations.see"
    FEDERATIONS_MANAGE = "federations.manage"

    LOGIN = "login"  # anybody has it: how else would one become somebody
    NODE = "node"  # a SuperNode that proves to hold its key
    EXECUTOR = "executor"  # an executor with the deployment's token or certificate
    HOSTED_RUN = "hosted-run"  # the executor that a run was handed to, with that run's token


BY_STANDING = frozenset({Permission.LOGIN, Permission.NODE, Permission.EXECUTOR, Permission.HOSTED_RUN})
"""What no role gives."""

OF_ACCOUNTS = frozenset(Permission) - BY_STANDING
"""What roles give."""
