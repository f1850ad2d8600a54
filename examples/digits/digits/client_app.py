"""What a site does: learn from its own images, and say how well the common model knows them."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits import task

app = ClientApp()


def _own_images(context: Context) -> tuple[task.Images, task.Images]:
    return task.site_images(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Improve the model on this site's images."""
    images, _ = _own_images(context)
    config = context.run_config
    model = task.train(
        message.content["arrays"].to_numpy_ndarrays(),
        images,
        epochs=int(config["local-epochs"]),
        batch_size=int(config["batch-size"]),
        learning_rate=float(config["learning-rate"]),
        seed=int(message.content["config"]["server-round"]),
    )
    loss, _ = task.judge(model, images)
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(images)})
    return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the model by images that this site has not learned from."""
    _, images = _own_images(context)
    loss, accuracy = task.judge(message.content["arrays"].to_numpy_ndarrays(), images)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(images)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
