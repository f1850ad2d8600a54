"""A site: adds its own number to the model and counts how often it did so in this run."""

import atexit
import subprocess
import time

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ledger.faults import wrong

# The moment of a round at which the faulty site goes wrong.
MOMENTS = {"2": "at the start", "3": "at the end", "4": "after the reply"}

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    partition, config = int(context.node_config["partition-id"]), context.run_config
    fault = str(config["site-fault"]) if partition == config["faulty"] else ""
    moment = MOMENTS.get(message.metadata.group_id) if fault else None
    if moment == "at the start":
        wrong(fault)
    if config["child"]:
        subprocess.Popen(["sleep", "300"], start_new_session=True)
        print("working", flush=True)
    time.sleep(float(config["pause"]))
    state = context.state.config_records.setdefault("count", ConfigRecord({"worked": 0}))
    state["worked"] = int(state["worked"]) + 1
    (model,) = message.content["model"].to_numpy_ndarrays()
    content = RecordDict(
        {
            "model": ArrayRecord([model + 1 + partition]),
            "books": MetricRecord({"partition": partition, "worked": state["worked"]}),
        }
    )
    if moment == "at the end":
        wrong(fault)
    if moment == "after the reply":
        atexit.register(wrong, fault)
    return Message(content, reply_to=message)
