"""Counts."""

import time

from flwr.common import Context
from flwr.server import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    for number in range(int(context.run_config["ticks"])):
        print(f"tick {number} at {time.time():.1f}", flush=True)
        time.sleep(0.5)
