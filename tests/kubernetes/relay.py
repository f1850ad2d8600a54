"""What stands before a cluster: a published address, whose connections are passed on to a port of the node."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

Address = tuple[str, int]


@contextmanager
def relayed(published: Address, target: Address) -> Iterator[None]:
    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                onward = socket.create_connection(target, 5)
            except OSError:
                return  # nobody there: the caller's connection ends, too
            with onward:
                onward.settimeout(None)
                back = threading.Thread(target=_pump, args=(onward, self.request), daemon=True)
                back.start()
                _pump(self.request, onward)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server(published, Connection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Until the source has said everything."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            end.close()
