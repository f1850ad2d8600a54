"""A site that takes memory without end in the round in which it is told to."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """An empty reply, or none."""
    taken = []
    while message.content["config"]["hungry"] == int(context.node_config["partition-id"]) + 1:
        taken.append(b"\1" * (16 << 20))
    return Message(RecordDict(), reply_to=message)
