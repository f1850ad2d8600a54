"""What the server does, with `flwr.server.strategy`: average the models and judge the average."""

import time
from collections.abc import Callable

from flwr.common import Context, NDArrays, Scalar, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from legacy_numpy import task

Judge = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]]]


def judge_and_print(rounds: int) -> Judge:
    """A function that judges each round's model by images that no site has, and prints what it found."""
    images = task.held_out()
    since = time.monotonic()

    def judge(server_round: int, arrays: NDArrays, config: dict[str, Scalar]) -> tuple[float, dict[str, Scalar]]:
        nonlocal since
        loss, accuracy = task.judge(arrays, images)
        took, since = time.monotonic() - since, time.monotonic()
        print(f"round {server_round}/{rounds}: accuracy {accuracy:.4f}, loss {loss:.4f}, {took:.2f} s", flush=True)
        return loss, {"accuracy": accuracy}

    return judge


def server_fn(context: Context) -> ServerAppComponents:
    """The strategy and the number of rounds, from the run's configuration."""
    rounds, sites = int(context.run_config["num-server-rounds"]), int(context.run_config["min-sites"])
    strategy = FedAvg(
        min_available_clients=sites,
        min_fit_clients=sites,
        min_evaluate_clients=sites,
        initial_parameters=ndarrays_to_parameters(task.new_model()),
        on_fit_config_fn=lambda server_round: {"server-round": server_round},
        evaluate_fn=judge_and_print(rounds),
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
