"""The server: says what came of each round."""

import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One line a reply: `round 1: fine`, or the error. In round 2 site `hungry-site` (1 is the first) is told to."""
    while len(nodes := sorted(grid.get_node_ids())) < int(context.run_config["sites"]):
        time.sleep(0.1)
    for number in (1, 2, 3):
        hungry = int(context.run_config["hungry-site"]) if number == 2 else 0
        content = RecordDict({"config": ConfigRecord({"hungry": hungry})})
        for reply in grid.send_and_receive([Message(content, node, "train") for node in nodes]):
            print(f"round {number}: {reply.error.reason if reply.has_error() else 'fine'}", flush=True)
