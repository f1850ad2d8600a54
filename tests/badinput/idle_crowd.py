"""Holds many connections that do nothing; arguments: host, port, how many. Says when they are there, ends with its
standard input. A third says nothing at all, a third stops within a head, a third after an answer.
"""

import contextlib
import resource
import socket
import sys

PARTS = (b"", b"POST /v1/control/list-runs HTTP/1.1\r\nhost: he", b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n")


def main(host: str, port: int, count: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = []
    for number in range(count):
        connection = socket.create_connection((host, port), 60)
        with contextlib.suppress(ConnectionError):  # the server may have had enough of it
            connection.sendall(PARTS[number % 3])
        crowd.append(connection)
    print(f"{len(crowd)} connections", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
