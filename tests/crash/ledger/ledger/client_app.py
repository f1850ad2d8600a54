"""A site: adds its own number to the model and counts how often it did so in this run."""

import time

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    time.sleep(float(context.run_config["pause"]))
    state = context.state.config_records.setdefault("count", ConfigRecord({"worked": 0}))
    state["worked"] = int(state["worked"]) + 1
    partition = int(context.node_config["partition-id"])
    (model,) = message.content["model"].to_numpy_ndarrays()
    content = RecordDict(
        {
            "model": ArrayRecord([model + 1 + partition]),
            "books": MetricRecord({"partition": partition, "worked": state["worked"]}),
        }
    )
    return Message(content, reply_to=message)
