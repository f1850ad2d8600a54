"""Rounds of two phases, as strategies make them, and one line of JSON on each phase (after the word BENCH)."""

import json
import time

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


def _nodes(grid: Grid, wanted: int) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        time.sleep(0.05)
    return nodes


def _phase(grid: Grid, kind: str, number: int, nodes: list[int], arrays: ArrayRecord) -> None:
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number})})
    messages = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
    began = time.time()
    replies = list(grid.send_and_receive(messages))
    ended = time.time()
    errors = [reply.error.reason for reply in replies if reply.has_error()]
    if errors or len(replies) != len(nodes):
        raise RuntimeError(f"{len(replies)} replies of {len(nodes)} nodes; errors: {errors}")
    clients = [dict(reply.content["metrics"]) for reply in replies]
    line = {"round": number, "phase": kind, "began": began, "ended": ended, "clients": clients}
    print("BENCH " + json.dumps(line), flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Each round's array is a new one, so that it has to travel."""
    config = context.run_config
    nodes = _nodes(grid, int(config["nodes"]))
    for number in range(1, int(config["rounds"]) + 1):
        values = np.random.default_rng(number).random(int(config["array-bytes"]) // 4, dtype=np.float32)
        arrays = ArrayRecord([values])
        _phase(grid, "train", number, nodes, arrays)
        if config["evaluate"]:
            _phase(grid, "evaluate", number, nodes, arrays)
