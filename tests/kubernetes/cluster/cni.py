"""The CNI plugin behind those that give a pod its address: waits until the enforcer has the rules for it.

Called for every pod, so it imports nothing but the standard library.
"""

import ipaddress
import json
import os
import socket
import sys
import time

_SECONDS = 20.0  # for an enforcer that is just starting


def tell(path: str, message: object) -> str:
    """What the enforcer answers."""
    end = time.monotonic() + _SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            try:
                connection.connect(path)
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
                continue
            connection.sendall(json.dumps(message).encode() + b"\n")
            with connection.makefile() as answer:
                return answer.readline().strip()


def main() -> int:
    command = os.environ["CNI_COMMAND"]
    config = json.load(sys.stdin)
    if command == "VERSION":
        print(json.dumps({"cniVersion": config["cniVersion"], "supportedVersions": ["0.4.0", "1.0.0"]}))
        return 0
    if command not in ("ADD", "DEL"):
        return 0
    about = dict(part.split("=", 1) for part in os.environ["CNI_ARGS"].split(";"))
    result = config.get("prevResult") or {}
    addresses = [ipaddress.ip_interface(one["address"]) for one in result.get("ips", ())]
    for address in addresses:
        if address.version != 4:
            continue
        pod = [about["K8S_POD_NAMESPACE"], about["K8S_POD_NAME"]]
        try:
            answer = tell(config["socket"], {"do": command, "pod": pod, "address": str(address.ip)})
        except OSError as problem:
            answer = str(problem)
        if command == "ADD" and answer != "ok":  # no pod without its rules; kubelet tries again
            print(json.dumps({"cniVersion": config["cniVersion"], "code": 11, "msg": f"NetworkPolicies: {answer}"}))
            return 1
    if command == "ADD":
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
