"""As much of Kubernetes' API as `trellis certs kubernetes` asks: Secrets of a namespace, with versions and a token."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "token-of-the-pod"
NAMESPACE = "fl"


@dataclass
class Cluster:
    """What is there, and what was asked."""

    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)  # methods
    writes: list[str] = field(default_factory=list)
    before_write: list[dict[str, Any]] = field(default_factory=list)  # somebody else's, who comes first
    versions: int = 0

    def keep(self, document: dict[str, Any]) -> dict[str, Any]:
        self.versions += 1
        document["metadata"]["resourceVersion"] = str(self.versions)
        self.secrets[document["metadata"]["name"]] = document
        return document

    def answer(self, method: str, name: str | None, body: Any) -> tuple[int, dict[str, Any]]:
        if method in self.forbidden:
            return 403, {"kind": "Status", "message": f"{method} is not allowed"}
        if method in ("POST", "PUT"):
            self.writes.append(body["metadata"]["name"])
            while self.before_write:
                self.keep(self.before_write.pop())
        known = self.secrets.get(name or body["metadata"]["name"])
        if method == "GET":
            return (200, known) if known else (404, {"kind": "Status", "message": f"{name} not found"})
        if method == "POST":
            return (409, {"kind": "Status", "message": "already exists"}) if known else (201, self.keep(body))
        if known is None or known["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            return 409, {"kind": "Status", "message": "the object has been modified"}
        if known["type"] != body["type"]:
            return 422, {"kind": "Status", "message": "type: field is immutable"}
        return 200, self.keep(body)


def serve(cluster: Cluster, certificate: Path, key: Path) -> Iterator[int]:
    """Its port, for as long as the fixture lives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do()

        def do_POST(self) -> None:
            self._do()

        def do_PUT(self) -> None:
            self._do()

        def _do(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            prefix = f"/api/v1/namespaces/{NAMESPACE}/secrets"
            status: int
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                status, answer = 401, {"kind": "Status", "message": "Unauthorized"}
            elif not self.path.startswith(prefix):
                status, answer = 404, {"kind": "Status", "message": "no such path"}
            else:
                status, answer = cluster.answer(self.command, self.path[len(prefix) :].lstrip("/") or None, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
