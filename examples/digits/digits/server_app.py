"""What the server does: average the sites' models, and judge the average by images that no site has."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for `num-server-rounds`; one line a round says how good the common model has become."""
    rounds, sites = int(context.run_config["num-server-rounds"]), int(context.run_config["min-sites"])
    images = task.held_out()
    since = time.monotonic()

    def judge(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal since
        loss, accuracy = task.judge(arrays.to_numpy_ndarrays(), images)
        took, since = time.monotonic() - since, time.monotonic()
        print(f"round {server_round}/{rounds}: accuracy {accuracy:.4f}, loss {loss:.4f}, {took:.2f} s", flush=True)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    strategy = FedAvg(min_available_nodes=sites, min_train_nodes=sites, min_evaluate_nodes=sites)
    result = strategy.start(grid, ArrayRecord(task.new_model()), num_rounds=rounds, evaluate_fn=judge)
    np.savez("model.npz", *result.arrays.to_numpy_ndarrays())  # `flwr pull` fetches it
