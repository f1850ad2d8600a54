"""The server: sends the model round by round, adds what comes back, and prints the books as JSON."""

import json
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One line of JSON a round: `{"round", "replies": [[partition, worked, error], ...], "sum"}`."""
    sites = int(context.run_config["sites"])
    while len(nodes := sorted(grid.get_node_ids())) < sites:
        time.sleep(0.1)
    model = np.zeros(int(context.run_config["size"]))
    for number in range(1, int(context.run_config["rounds"]) + 1):
        instructions = [
            Message(RecordDict({"model": ArrayRecord([model])}), node, "train", group_id=str(number)) for node in nodes
        ]
        replies, total = [], model
        for reply in grid.send_and_receive(instructions):
            if reply.has_error():
                replies.append([-1, 0, reply.error.code])
                continue
            books = reply.content["books"]
            replies.append([int(books["partition"]), int(books["worked"]), None])
            total = total + reply.content["model"].to_numpy_ndarrays()[0]
        model = total
        print("books " + json.dumps({"round": number, "replies": sorted(replies), "sum": float(model[0])}), flush=True)
