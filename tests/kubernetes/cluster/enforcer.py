"""Enforces the cluster's NetworkPolicies: follows pods, namespaces and policies, and writes nftables rules.

For tests only: one node, IPv4, pods on one bridge. A pod gets its address through the CNI plugin beside this module,
which waits until the rules for that address are in the kernel: not even a pod's first packet goes unjudged.
"""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from cluster.layout import API, State
from cluster.rules import Pod, World, no_rules, ruleset

_PATHS = {
    "pods": "/api/v1/pods",
    "namespaces": "/api/v1/namespaces",
    "policies": "/apis/networking.k8s.io/v1/networkpolicies",
}
_LOOK = 0.1
_NEW_POD_SECONDS = 10.0
Key = tuple[str, str]


class Watched(threading.Thread):
    """All objects of a kind, as they are now."""

    def __init__(self, client: httpx.Client, path: str, changed: Callable[[], None]) -> None:
        super().__init__(name=path, daemon=True)
        self._client, self._path, self._changed = client, path, changed
        self.objects: dict[Key, Mapping[str, Any]] = {}
        self.listed = threading.Event()

    def run(self) -> None:
        while True:
            try:
                self._follow()
            except (httpx.HTTPError, ValueError) as problem:
                print(f"{self._path}: {problem}", flush=True)
            time.sleep(_LOOK)  # between two attempts at an API server that is not there

    def _follow(self) -> None:
        answer = self._client.get(self._path)
        answer.raise_for_status()
        found = answer.json()
        self.objects = {_key(one): one for one in found["items"]}
        self.listed.set()
        self._changed()
        since = {"watch": "1", "resourceVersion": found["metadata"]["resourceVersion"]}
        with self._client.stream("GET", self._path, params=since, timeout=None) as stream:
            stream.raise_for_status()
            for line in stream.iter_lines():
                self._take(json.loads(line))

    def _take(self, event: Mapping[str, Any]) -> None:
        changed = event["object"]
        match event["type"]:
            case "ADDED" | "MODIFIED":
                self.objects = self.objects | {_key(changed): changed}
            case "DELETED":
                self.objects = {key: one for key, one in self.objects.items() if key != _key(changed)}
            case _:
                raise ValueError(str(changed))  # too old a version: the list is taken anew
        self._changed()


class Enforcer:
    """Keeps the kernel's rules true."""

    def __init__(self, client: httpx.Client) -> None:
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._addresses: dict[Key, str] = {}  # of pods whose status does not tell yet, as CNI gave them
        self._written = ""
        self.on = True
        self._watched = {name: Watched(client, path, self._wanted.set) for name, path in _PATHS.items()}

    def start(self) -> None:
        for one in self._watched.values():
            one.start()
        for one in self._watched.values():
            one.listed.wait()

    def run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            self.write()

    def write(self) -> None:
        """Returns when the kernel has the rules of now."""
        with self._lock:
            rules = ruleset(self._world()) if self.on else no_rules()
            if rules != self._written:
                _nft(rules)
                self._written = rules

    def add(self, key: Key, address: str) -> None:
        with self._lock:
            self._addresses = {one: at for one, at in self._addresses.items() if at != address} | {key: address}
        end = time.monotonic() + _NEW_POD_SECONDS
        while key not in self._watched["pods"].objects:
            if time.monotonic() > end:
                raise TimeoutError(f"The API does not know the pod {key}")
            time.sleep(0.01)
        self.write()

    def remove(self, key: Key, address: str) -> None:
        with self._lock:
            if self._addresses.get(key) == address:
                del self._addresses[key]

    def switch(self, on: bool) -> None:
        self.on = on
        self.write()

    def _world(self) -> World:
        pods = []
        taken = {address: key for key, address in self._addresses.items()}
        for key, one in self._watched["pods"].objects.items():
            told = one["status"].get("podIP", "")
            address = self._addresses.get(key) or (told if taken.get(told, key) == key else "")
            over = one["status"].get("phase") in ("Succeeded", "Failed")
            if address and not over and not one["spec"].get("hostNetwork"):
                pods.append(Pod(*key, address, one["metadata"].get("labels", {}), _ports(one["spec"])))
        namespaces = self._watched["namespaces"].objects
        return World(
            pods,
            {name: one["metadata"].get("labels", {}) for (_, name), one in namespaces.items()},
            [one for _, one in sorted(self._watched["policies"].objects.items())],
        )


def _nft(rules: str) -> None:
    """All of them or none."""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def _key(one: Mapping[str, Any]) -> Key:
    return one["metadata"].get("namespace", ""), one["metadata"]["name"]


def _ports(spec: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    return {
        (port["name"], port.get("protocol", "TCP")): port["containerPort"]
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        for port in container.get("ports", ())
        if "name" in port
    }


def serve(enforcer: Enforcer, socket: Path) -> None:
    """Answers the CNI plugin, and tests that switch the rules off and on."""

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = json.loads(self.rfile.readline())
            try:
                match asked:
                    case {"do": "ADD", "pod": [namespace, name], "address": address}:
                        enforcer.add((namespace, name), address)
                    case {"do": "DEL", "pod": [namespace, name], "address": address}:
                        enforcer.remove((namespace, name), address)
                    case {"do": "switch", "on": bool(on)}:
                        enforcer.switch(on)
                    case _:
                        raise ValueError(f"not understood: {asked}")
            except (TimeoutError, ValueError, subprocess.CalledProcessError) as problem:
                self.wfile.write(f"{problem}\n".encode())
            else:
                self.wfile.write(b"ok\n")

    socketserver.ThreadingUnixStreamServer.daemon_threads = True
    server = socketserver.ThreadingUnixStreamServer(str(socket), Asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    state = State(Path(sys.argv[1]))
    # Without these, pods on one bridge reach each other past all rules. They have link-local IPv6 addresses, too.
    for protocol in ("iptables", "ip6tables"):
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{protocol}").write_text("1")
    _nft("table ip6 trellis_netpol { chain forward { type filter hook forward priority filter; policy drop; }; }")
    client = httpx.Client(
        base_url=API,
        verify=str(state.pki / "ca.crt"),
        headers={"Authorization": f"Bearer {state.token.read_text()}"},
        trust_env=False,
    )
    enforcer = Enforcer(client)
    enforcer.start()
    enforcer.write()
    serve(enforcer, state.enforcer)
    enforcer.run()


if __name__ == "__main__":
    main()
