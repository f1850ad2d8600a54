"""Write a small Flower App to begin with: a message app that averages a number over the sites."""

import argparse
import re
import shutil
from pathlib import Path

from trellis_cli.arguments import add_format
from trellis_cli.errors import EXIT_OK, CliError, UsageError
from trellis_cli.output import Output

_PYPROJECT = """\
[project]
name = "{name}"
version = "1.0.0"
description = "A Flower App"
license = "Apache-2.0"
dependencies = ["flwr>=1.24", "numpy"]

[tool.flwr.app]
publisher = "{publisher}"

[tool.flwr.app.components]
serverapp = "{module}.server_app:app"
clientapp = "{module}.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 3
"""
_SERVER = '''\
"""The server's side: averages what the sites send, for some rounds."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(1)]),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    print("average:", result.arrays.to_numpy_ndarrays())
'''
_CLIENT = '''\
"""A site's side: moves the number halfway to its own, which is its partition's id."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    (number,) = message.content["arrays"].to_numpy_ndarrays()
    number = (number + float(context.node_config["partition-id"])) / 2
    content = {"arrays": ArrayRecord([number]), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    (number,) = message.content["arrays"].to_numpy_ndarrays()
    distance = abs(float(number[0]) - float(context.node_config["partition-id"]))
    return Message(RecordDict({"metrics": MetricRecord({"distance": distance, "num-examples": 1})}), reply_to=message)
'''


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the app and of its folder")
    add_format(parser)
    parser.add_argument("--publisher", default="me", metavar="NAME", help="who publishes it (default: me)")


def execute(args: argparse.Namespace, out: Output) -> int:
    name: str = args.name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise UsageError(f"{name!r} cannot name an app: use letters, digits and -, a letter first.")
    module = name.lower().replace("-", "_")
    folder = Path(name)
    if folder.exists():
        raise UsageError(f"{folder} exists already; nothing was written.")
    package = folder / module
    values = {"name": name, "module": module, "publisher": args.publisher}
    try:
        package.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(_PYPROJECT.format(**values))
        (package / "__init__.py").write_text(f'"""{name}: a Flower App."""\n')
        (package / "server_app.py").write_text(_SERVER)
        (package / "client_app.py").write_text(_CLIENT)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CliError(f"{folder} cannot be written: {error.strerror}.") from error
    out.say(f"Wrote {folder}. Run it with: trellis run {folder}")
    out.json({"success": True, "path": str(folder.absolute())})
    return EXIT_OK
