"""A site that does next to nothing: what a round takes is what the network takes.

Times are seconds since the epoch; all processes of a benchmark share one machine and its clock.
"""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Send back as many bytes as came, other ones on each node: nothing is spared by being known already."""
    began = time.time()
    (array,) = message.content["arrays"].to_numpy_ndarrays()
    array = array + np.float32(1 + int(context.node_config["partition-id"]))
    arrays = ArrayRecord([array])
    metrics = MetricRecord({"began": began, "ended": time.time()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Read the array and send back two numbers."""
    began = time.time()
    (array,) = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"first": float(array[0]), "began": began, "ended": time.time()})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
