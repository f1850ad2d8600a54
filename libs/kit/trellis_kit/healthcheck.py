"""Asks the operations port of the service in this container whether it is ready: what HEALTHCHECK runs.

Imports next to nothing, since it is started every few seconds. The port is the one of TRELLIS_OPS_ADDRESS; the service
is asked on the same address, or on 127.0.0.1 where it listens on all.
"""

import os
import socket
import sys

_TIMEOUT = 4.0  # seconds; a service that needs longer to say that it is well is not
_ALL = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    """0: ready. 1: not ready, or no answer; standard output says why."""
    host, _, port = os.environ.get("TRELLIS_OPS_ADDRESS", "").rpartition(":")
    host = host.strip("[]")
    if not port:
        print("TRELLIS_OPS_ADDRESS is not set: there is no operations port to ask")
        return 1
    try:
        with socket.create_connection((_ALL.get(host, host), int(port)), timeout=_TIMEOUT) as connection:
            connection.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            reply = b""
            while received := connection.recv(65536):
                reply += received
    except (OSError, ValueError) as error:
        print(f"{host}:{port} does not answer: {error}")
        return 1
    head, _, body = reply.partition(b"\r\n\r\n")
    print(body.decode(errors="replace").strip())
    return 0 if head.split(b" ")[1:2] == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
