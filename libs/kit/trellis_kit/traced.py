"""Import this before gRPC is loaded, in a program that listens: it makes gRPC's core tell of failed handshakes.

The core reads its settings once, when it is loaded, and its tracer `handshaker` is the only thing that says why a
connection did not come about. `handshakes.listen_in` then reads what it writes, and takes the variables out of the
environment again, for the sake of child processes.
"""

import os

VARIABLES = {"GRPC_TRACE": "handshaker", "GRPC_VERBOSITY": "INFO"}

# An operator who has set them wants to see the lines as gRPC writes them.
_asked = bool(os.environ.get("GRPC_TRACE")) or os.environ.get("GRPC_VERBOSITY", "NONE") != "NONE"
raw = _asked
if not _asked:
    os.environ.update(VARIABLES)
