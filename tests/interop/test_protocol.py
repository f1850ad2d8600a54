"""What we know of each release, held against the protocol classes that it ships: its rpcs, and the layouts of what it
reads from us."""

from __future__ import annotations

import base64
import json
import subprocess
from functools import cache
from typing import Any

import pytest
from google.protobuf.message import Message
from matrix import minor, releases
from trellis_superlink.edges.rpcs import REFUSED_SERVICES, RPCS
from trellis_superlink.edges.versions import NAMED, encode
from trellis_testing import StockFlwr
from trellis_wire.pb.edge import control_pb2, federation_pb2, node_pb2, run_pb2

# Run by the release's own interpreter: its services, and our bytes as its classes read them.
LOOK = """
import base64, importlib, json, pkgutil, sys
from google.protobuf.json_format import MessageToDict
import flwr.proto
wanted = json.load(sys.stdin)
services, kinds = {}, {}
for module in pkgutil.iter_modules(flwr.proto.__path__):
    if module.name.endswith("_pb2"):
        file = importlib.import_module("flwr.proto." + module.name)
        for service in file.DESCRIPTOR.services_by_name.values():
            services[service.full_name] = sorted(service.methods_by_name)
        kinds.update({name: getattr(file, name) for name in file.DESCRIPTOR.message_types_by_name})
read = {
    name: MessageToDict(kinds[name].FromString(base64.b64decode(data)), preserving_proto_field_name=True)
    for name, data in wanted.items() if name in kinds
}
try:
    from flwr.supercore.protobuf import translation
    paths = [path for table in vars(translation).values() if isinstance(table, dict) for path in table]
    paths = sorted({path[1] for path in paths if isinstance(path, tuple) and len(path) == 2})
except ImportError:
    paths = []
print(json.dumps({"services": services, "read": read, "paths": paths}))
"""

NODE = node_pb2.NodeInfo(
    node_id=7,
    owner_aid="<id:none>",
    owner_name="none",
    status="online",
    registered_at="2026-01-02T03:04:05+00:00",
    last_activated_at="2026-01-02T03:04:06+00:00",
    online_until=1.5,
    heartbeat_interval=30.0,
    public_key=b"key",
)
RUN = run_pb2.Run(run_id=9, fab_id="a/b", federation="default")
MEMBER = federation_pb2.Member(account=federation_pb2.Account(id="<id:none>", name="none"), role="owner")
FEDERATION = federation_pb2.Federation(name="default", nodes=[NODE], runs=[RUN], members=[MEMBER])
NOW = "2026-01-02T03:04:07+00:00"
EVENT = control_pb2.TaskEvent(id=3, run_id=9, event="run_status", data="{}")

SENT: tuple[Message, ...] = (
    control_pb2.ListNodesResponse(nodes_info=[NODE], now=NOW),
    control_pb2.ShowFederationResponse(federation=FEDERATION, now=NOW),
    control_pb2.StreamRunEventsResponse(task_event=EVENT),
)


@cache
def seen_by(release: str, unnamed: bool = False) -> Any:
    """What the release's own classes say. `unnamed`: of the bytes for a caller whose release is not known."""
    version = None if unnamed else minor(release)
    wanted = {type(one).__name__: base64.b64encode(encode(one, version)).decode() for one in SENT}
    python = StockFlwr(release).ensure().python
    done = subprocess.run([python, "-c", LOOK], input=json.dumps(wanted), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("release", releases())
def test_each_of_its_rpcs_is_in_the_table(release: str) -> None:
    seen = seen_by(release)
    version = minor(release)
    for service, methods in seen["services"].items():
        if service in REFUSED_SERVICES:
            continue
        known = {
            name
            for name, rpc in RPCS[service].items()
            if rpc.over_grpc and rpc.since <= version and (rpc.until is None or version <= rpc.until)
        }
        assert known == set(methods), service
    surfaces = {"fleet": RPCS["flwr.proto.Fleet"], "control": RPCS["flwr.proto.Control"]}
    for path in seen["paths"]:
        _, _, surface, name = path.split("/")
        if surface in surfaces:
            method = "".join(part.capitalize() for part in name.split("-")).replace("Oauth", "OAuth")
            assert surfaces[surface][method].since <= version, path
    assert version < (1, 37) or seen["paths"]


@pytest.mark.parametrize("release", [one for one in releases() if minor(one) >= (1, 23)])
def test_it_reads_nodes_federations_and_events_in_its_own_layout(release: str) -> None:
    read = seen_by(release)["read"]
    version = minor(release)
    [node] = read["ListNodesResponse"]["nodes_info"]
    assert_node(node, version)
    if version >= (1, 24):
        federation = read["ShowFederationResponse"]["federation"]
        assert federation["name"] == "default"
        assert_node(federation["nodes"][0], version)
        assert federation["runs"][0]["run_id"] == "9"
        if version >= (1, 27):
            [member] = federation["members"]
            assert member == {"account": {"id": "<id:none>", "name": "none"}, "role": "owner"}
        else:
            assert federation["member_aids"] == ["<id:none>"]
            assert federation.get("accounts") == ([{"id": "<id:none>", "name": "none"}] if version == (1, 26) else None)
    if version >= (1, 31):
        assert read["StreamRunEventsResponse"]["task_event"]["event"] == "run_status"
    elif version >= (1, 28):
        assert read["StreamRunEventsResponse"] == {"event": "run_status", "data": "{}"}


@pytest.mark.parametrize("release", [one for one in releases() if (1, 24) <= minor(one) < NAMED])
def test_it_misreads_nothing_where_its_release_is_not_known(release: str) -> None:
    read = seen_by(release, unnamed=True)["read"]
    assert_node(read["ListNodesResponse"]["nodes_info"][0], minor(release))
    assert read["ShowFederationResponse"] == {"federation": {"name": "default"}, "now": NOW}


def assert_node(node: dict[str, Any], version: tuple[int, int]) -> None:
    found = {name: node[name] for name in ("node_id", "owner_aid", "status", "registered_at", "online_until")}
    assert found == {
        "node_id": "7",
        "owner_aid": "<id:none>",
        "status": "online",
        "registered_at": "2026-01-02T03:04:05+00:00",
        "online_until": 1.5,
    }
    assert base64.b64decode(node["public_key"]) == b"key"
    assert node.get("owner_name") == (None if version < (1, 24) else "none")
