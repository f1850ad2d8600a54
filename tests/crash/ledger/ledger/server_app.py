"""The server: sends the model round by round, adds what comes back, and prints the books as JSON."""

import json
import subprocess
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from ledger.faults import wrong

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One line of JSON a round: `{"round", "replies": [[partition, worked, error], ...], "sum"}`.

    And one line for each error: `failed <Unix seconds> <reason>`.
    """
    config = context.run_config
    if config["child"]:
        subprocess.Popen(["sleep", "300"], start_new_session=True)
    sites = int(config["sites"])
    while len(nodes := sorted(grid.get_node_ids())) < sites:
        time.sleep(0.1)
    model = np.zeros(int(config["size"]))
    for number in range(1, int(config["rounds"]) + 1):
        instructions = [
            Message(RecordDict({"model": ArrayRecord([model])}), node, "train", group_id=str(number)) for node in nodes
        ]
        if config["server-fault"] and number == 3:
            grid.push_messages(instructions)
            wrong(str(config["server-fault"]))
        replies, total = [], model
        for reply in grid.send_and_receive(instructions):
            if reply.has_error():
                print(f"failed {time.time()} {reply.error.reason}", flush=True)
                replies.append([-1, 0, reply.error.code])
                continue
            books = reply.content["books"]
            replies.append([int(books["partition"]), int(books["worked"]), None])
            total = total + reply.content["model"].to_numpy_ndarrays()[0]
        model = total
        print("books " + json.dumps({"round": number, "replies": sorted(replies), "sum": float(model[0])}), flush=True)
