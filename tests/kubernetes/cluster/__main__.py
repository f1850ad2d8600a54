"""`python -m cluster` keeps a cluster until it is interrupted; `python -m cluster prepare` brings what it needs."""

from __future__ import annotations

import signal
import sys

from cluster import Cluster, ClusterProblem, MissingBinaries, UnfitMachine
from cluster.binaries import bring
from cluster.machine import prepare


def main() -> int:
    try:
        if sys.argv[1:] == ["prepare"]:
            prepare()
            bring()
            return 0
        with Cluster.running() as cluster:
            print(
                f"export KUBECONFIG={cluster.state.kubeconfig}; the cluster ends with this command (Ctrl-C).",
                flush=True,
            )
            ends = {signal.SIGINT, signal.SIGTERM}
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            signal.sigwait(ends)
    except (ClusterProblem, MissingBinaries, UnfitMachine) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
