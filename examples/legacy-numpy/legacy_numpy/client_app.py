"""What a site does, as a NumPyClient: fit on its own images, evaluate by those it kept back."""

from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context, NDArrays, Scalar

from legacy_numpy import task

UserConfig = dict[str, Scalar]


class Site(NumPyClient):
    """One site with its images."""

    def __init__(self, node_config: UserConfig, run_config: UserConfig) -> None:
        partition = int(node_config["partition-id"]), int(node_config["num-partitions"])
        self.images, self.kept = task.site_images(*partition)
        self.run_config = run_config

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Improve the model on this site's images."""
        model = task.train(
            parameters,
            self.images,
            epochs=int(self.run_config["local-epochs"]),
            batch_size=int(self.run_config["batch-size"]),
            learning_rate=float(self.run_config["learning-rate"]),
            seed=int(config["server-round"]),
        )
        loss, _ = task.judge(model, self.images)
        return model, len(self.images), {"train-loss": loss}

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Judge the model by images that this site has not learned from."""
        loss, accuracy = task.judge(parameters, self.kept)
        return loss, len(self.kept), {"accuracy": accuracy}


def client_fn(context: Context) -> Client:
    """The site that this node stands for."""
    return Site(context.node_config, context.run_config).to_client()


app = ClientApp(client_fn)
