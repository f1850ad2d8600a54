"""The server's side: waits for the sites, asks each, and fails unless all answer."""

import time

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

SECONDS = 240

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    wanted = int(context.run_config["sites"])
    end = time.monotonic() + SECONDS
    while len(nodes := list(grid.get_node_ids())) < wanted:
        if time.monotonic() > end:
            raise RuntimeError(
                f"Of {wanted} sites, {len(nodes)} are there after {SECONDS} s; their SuperNodes' logs say why."
            )
        time.sleep(0.5)
    questions = [Message(RecordDict(), message_type="query", dst_node_id=node) for node in nodes]
    replies = list(grid.send_and_receive(questions, timeout=SECONDS))
    failed = [reply for reply in replies if reply.has_error()]
    for reply in failed:
        print(f"Site {reply.metadata.src_node_id}: {reply.error.reason}")
    if failed or len(replies) < len(nodes):
        raise RuntimeError(f"Of {len(nodes)} sites, {len(replies) - len(failed)} answered.")
    print(f"All {len(nodes)} sites answered.")
