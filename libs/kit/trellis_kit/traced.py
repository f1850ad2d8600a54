"""Import this before gRPC is loaded, in a program that listens: it loads gRPC so that it tells of failed handshakes.

The core reads its settings once, when it is loaded, and its tracer `handshaker` is the only thing that says why a
connection did not come about. `handshakes.listen_in` then reads what it writes.
"""

import importlib
import os

_WANTED = {"GRPC_TRACE": "handshaker", "GRPC_VERBOSITY": "INFO"}
_before = {name: os.environ.get(name) for name in _WANTED}

# An operator who has set them wants to see the lines as gRPC writes them.
raw = bool(_before["GRPC_TRACE"]) or _before["GRPC_VERBOSITY"] not in (None, "NONE")

if not raw:
    os.environ.update(_WANTED)
    importlib.import_module("grpc")
    for name, value in _before.items():  # not for child processes
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
