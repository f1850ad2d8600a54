"""The hunter at the server: prints its own findings and those of the sites."""

import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from hunter.hunt import Hunt

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """`serverapp: ...` and `clientapp: ...`, a line for each finding."""
    doors = str(context.run_config["doors"])
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    content = RecordDict({"config": ConfigRecord({"doors": doors})})
    [reply] = grid.send_and_receive([Message(content, nodes[0], "query")])
    reports = {"serverapp": Hunt().everything(doors.split())}
    reports["clientapp"] = str(reply.content["report"]["report"]) if reply.has_content() else str(reply.error)
    for where, report in reports.items():
        for line in report.splitlines():
            print(f"{where}: {line}", flush=True)
