"""What every Trellis service needs to be a good process: settings, TLS, logs, health, retry."""

import os

# gRPC's core writes lines of its own format among ours, and reads this when it is loaded; what it has to say comes as
# an exception as well, and is logged as one.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
