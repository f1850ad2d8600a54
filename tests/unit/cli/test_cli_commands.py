"""The commands against a real gRPC server: what is sent, what is shown, how they exit."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from control_server import RUN_ID, Served, a_run
from trellis_cli.main import main
from trellis_kit.federation import free_ports
from trellis_wire.pb.edge.node_pb2 import NodeInfo

ROOT = Path(__file__).parents[3]
DIGITS = str(ROOT / "examples" / "digits")
NO_RUN_4 = "There is no run 4 on this SuperLink; `trellis ls` lists the runs."


def there(superlink: Served) -> list[str]:
    return ["--superlink", superlink.address, "--insecure"]


def test_run_sends_the_fab_and_the_overrides(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", DIGITS, "-c", "num-server-rounds=3", "--run-config", "learning-rate=0.1", *there(superlink)])
    (sent,) = superlink.control.started
    assert code == 0
    assert sent.override_config["num-server-rounds"].sint64 == 3
    assert sent.override_config["learning-rate"].double == 0.1
    assert zipfile.is_zipfile(io.BytesIO(sent.fab.content))
    assert f"Successfully started run {RUN_ID}" in capsys.readouterr().out


def test_run_json_has_the_keys_of_stock(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", DIGITS, "--format", "json", *there(superlink)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["success"] is True
    assert said["run-id"] == str(RUN_ID)
    assert {"federation-id", "fab-id", "fab-name", "fab-version", "fab-hash", "fab-filename"} <= set(said)
    assert (said["fab-id"], len(said["fab-hash"])) == ("trellis/digits", 8)


def test_options_may_stand_between_the_arguments(superlink: Served, home: Path) -> None:
    (home / ".flwr").mkdir()
    (home / ".flwr" / "config.toml").write_text(f'[superlink.mine]\naddress = "{superlink.address}"\ninsecure = true\n')
    assert main(["run", DIGITS, "-c", "num-server-rounds=3", "mine"]) == 0


def test_stock_1_24_gets_the_federation_it_insists_on(superlink: Served) -> None:
    superlink.control.federations = ("default",)
    assert main(["run", DIGITS, *there(superlink)]) == 0
    assert [sent.federation for sent in superlink.control.started] == ["", "default"]


def test_a_refusal_for_another_reason_is_not_tried_again(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"code": 15, "public_message": "Invalid run configuration.", "public_details": "no key x"})
    superlink.control.refuse["StartRun"] = (grpc.StatusCode.FAILED_PRECONDITION, body)
    assert main(["run", DIGITS, *there(superlink)]) == 1
    assert len(superlink.control.started) == 1
    assert capsys.readouterr().err == "Error: Invalid run configuration. no key x\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", DIGITS, "-c", "rounds=3"], "no configuration key 'rounds'"),
        (["run", DIGITS, "-c", "learning-rate=fast"], "learning-rate"),
        (["run", "nowhere"], "There is no "),
        (["run", "."], "no Flower App"),
        (["log"], "required: RUN_ID\n"),
        (["log", "abc"], "'abc' is no id"),
        (["stop", "-5"], "'-5' is no id"),
        (["ls", "--run-id", str(2**64)], f"'{2**64}' is no id"),
        (["supernode", "unregister", "1.5"], "'1.5' is no id"),
        (["ls", "--limit", "0"], "--limit"),
        (["ls", "a", "b", "c"], "Too many arguments"),
        (["ls", "--insecure"], "--superlink HOST:PORT"),
        (["up", "--directory", "/dev/null/federation"], "/dev/null/federation cannot be used: Not a directory"),
        (["nonsense"], "There is no command 'nonsense'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_list_is_plain_when_piped_newest_first(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.runs = [
        a_run("finished", "completed", run_id=1, minute=1),
        a_run("pending", details="No ServerApp executor has connected", run_id=2, minute=2),
    ]
    assert main(["ls", *there(superlink)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["RUN", "ID"]
    assert first.startswith("2 ")
    assert first.endswith("No ServerApp executor has connected")
    assert "finished:completed" in second
    assert "20s" in second
    assert "\x1b" not in header + first + second


def test_list_json_has_the_keys_of_stock(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.runs = [a_run("finished", "failed", details="it broke")]
    assert main(["list", "--format", "json", *there(superlink)]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run == {
        "run-id": str(RUN_ID),
        "federation-id": "default",
        "fab-id": "trellis/digits",
        "fab-name": "digits",
        "fab-version": "1.0.0",
        "fab-hash": "ab" * 32,
        "status": "finished:failed",
        "status-details": "it broke",
        "elapsed": 20.0,
        "pending-at": "2026-11-24 11:00:00Z",
        "starting-at": "2026-11-24 11:00:01Z",
        "running-at": "2026-11-24 12:00:00Z",
        "finished-at": "2026-11-24 12:00:20Z",
        "network-traffic": {"inbound-bytes": 500, "outbound-bytes": 1000, "total-bytes": 1500},
        "compute-time": {"serverapp-seconds": 20.0, "clientapp-seconds": 1.5, "total-seconds": 21.5},
    }


def test_one_run_with_everything_about_it(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.runs = [a_run()]
    assert main(["ls", "--run-id", str(RUN_ID), *there(superlink)]) == 0
    shown = capsys.readouterr().out
    assert "running" in shown
    assert "30s" in shown  # by the SuperLink's clock
    assert "1000 B" in shown


def test_an_unknown_run(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--run-id", "4", "--format", "json", *there(superlink)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == {"success": False, "error-message": NO_RUN_4}
    superlink.control.refuse["StopRun"] = (
        grpc.StatusCode.NOT_FOUND,
        '{"code": 16, "public_message": "Run ID not found"}',
    )
    superlink.control.refuse["StreamLogs"] = superlink.control.refuse["StopRun"]
    for words in (["stop", "4"], ["log", "4"], ["log", "4", "--show"]):
        assert main([*words, *there(superlink)]) == 1
        assert capsys.readouterr().err == f"Error: {NO_RUN_4}\n"


def test_stop(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", str(RUN_ID), "--format", "json", *there(superlink)]) == 0
    assert superlink.control.stopped == [RUN_ID]
    assert json.loads(capsys.readouterr().out) == {"success": True, "run-id": str(RUN_ID)}


def test_pull(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", str(RUN_ID), *there(superlink)]) == 0
    assert capsys.readouterr().out == "http://h/1\n"
    assert main(["pull", str(RUN_ID), "--format", "json", *there(superlink)]) == 0
    assert json.loads(capsys.readouterr().out) == {"success": True, "url": "http://h/1"}
    assert main(["pull", "4", *there(superlink)]) == 1
    assert "Run 4 left no files behind" in capsys.readouterr().err
    superlink.control.refuse["PullArtifacts"] = (grpc.StatusCode.NOT_FOUND, "Run ID not found")
    assert main(["pull", "4", *there(superlink)]) == 1
    assert NO_RUN_4 in capsys.readouterr().err
    superlink.control.runs = [a_run("finished", "completed")]
    # The same status for a run that there is: ours says so of one that left nothing.
    superlink.control.refuse["PullArtifacts"] = (grpc.StatusCode.NOT_FOUND, f"Run {RUN_ID} left no files behind.")
    assert main(["pull", str(RUN_ID), *there(superlink)]) == 1
    assert f"Run {RUN_ID} left no files behind" in capsys.readouterr().err


def test_supernodes(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    at = "2026-11-24T12:00:00+00:00"
    superlink.control.nodes = [
        NodeInfo(node_id=5, owner_name="none", status="online", registered_at=at, last_activated_at=at),
        NodeInfo(node_id=6, owner_name="none", status="unregistered", registered_at=at, unregistered_at=at),
    ]
    assert main(["supernode", "list", *there(superlink)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["NODE", "5"]
    assert main(["supernode", "ls", "-v", "--format", "json", *there(superlink)]) == 0
    online, gone = json.loads(capsys.readouterr().out)["nodes"]
    assert (online["node-id"], online["online-elapsed"], online["offline-at"]) == ("5", 30.0, "N/A")
    assert gone["deleted-at"] == "2026-11-24 12:00:00Z"


def test_registering_wants_a_public_key_on_a_nist_curve(
    superlink: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    def write(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
        file = tmp_path / "key.pub"
        public = key.public_key()
        form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        file.write_bytes(public.public_bytes(*form))
        return str(file)

    assert main(["supernode", "register", write(ec.generate_private_key(ec.SECP384R1())), *there(superlink)]) == 0
    assert "SuperNode 77 is registered" in capsys.readouterr().out
    assert main(["supernode", "register", write(ed25519.Ed25519PrivateKey.generate()), *there(superlink)]) == 2
    assert "NIST curve" in capsys.readouterr().err


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert main(["ls", "--superlink", f"127.0.0.1:{port}", "--insecure"]) == 3
    assert f"Nobody answers at 127.0.0.1:{port} (from --superlink)" in capsys.readouterr().err


def test_a_name_that_no_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--superlink", "nowhere.invalid:9093", "--insecure"]) == 3
    assert "No machine is known as nowhere.invalid:9093" in capsys.readouterr().err


def test_the_http_port_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert main(["ls", "--superlink", f"127.0.0.1:{server.server_port}", "--insecure"]) == 3
    finally:
        server.shutdown()
    assert "speaks no gRPC" in capsys.readouterr().err


def test_tls_against_a_plain_superlink_says_so(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--superlink", superlink.address]) == 3
    assert "add --insecure" in capsys.readouterr().err


def test_try_again_later(superlink: Served, capsys: pytest.CaptureFixture[str]) -> None:
    superlink.control.refuse["ListRuns"] = (grpc.StatusCode.UNAVAILABLE, "The disk is full.")
    assert main(["ls", *there(superlink)]) == 3
    assert (
        capsys.readouterr().err == f"Error: {superlink.address} cannot answer now: The disk is full. Try again later.\n"
    )


def test_a_server_that_is_no_superlink(capsys: pytest.CaptureFixture[str]) -> None:
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert main(["ls", "--superlink", f"127.0.0.1:{port}", "--insecure"]) == 1
    finally:
        server.stop(None).wait()
    assert "another port than the Control API's" in capsys.readouterr().err


@pytest.mark.parametrize("fab_format", ["1.24", "1.41"])
def test_build_writes_a_fab_here(fab_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--app", DIGITS, "--fab-format", fab_format, "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "pyproject.toml" in zipfile.ZipFile(said["fab-filename"]).namelist()


def test_new_writes_an_app_that_can_be_sent(superlink: Served) -> None:
    assert main(["new", "my-app", "--format", "json"]) == 0
    assert main(["run", "my-app", *there(superlink)]) == 0
    assert main(["new", "my-app"]) == 2


def test_new_that_cannot_write_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "my-app"]) == 1
    assert capsys.readouterr().err == "Error: my-app cannot be written: No space left on device.\n"
    assert not Path("my-app").exists()


@pytest.mark.parametrize(
    ("component", "source", "said"),
    [
        ("my_app.servr_app:app", "", "names my_app/servr_app.py, which the app does not have"),
        ("my_app.server_app:ap", "", "names 'ap', which my_app/server_app.py does not define"),
        ("my_app.server_app:made", "def make():\n    global made\n    made = 1\n", None),
        ("my_app.server_app:app.inner", "", None),
        ("my_app.server_app:Late", "from typing import *\n", None),
        ("my_app.server_app:of_a_newer_python", "app = = 1\n", None),
        ("another_package.server_app:app", "", None),
        ("my_app:app", "", "names 'app', which my_app/__init__.py does not define"),
    ],
)
def test_components_that_are_not_there_are_found_before_sending(
    superlink: Served, capsys: pytest.CaptureFixture[str], component: str, source: str, said: str | None
) -> None:
    assert main(["new", "my-app"]) == 0
    project, server = Path("my-app/pyproject.toml"), Path("my-app/my_app/server_app.py")
    project.write_text(project.read_text().replace("my_app.server_app:app", component))
    server.write_text(server.read_text() + source)
    capsys.readouterr()
    expected = 0 if said is None else 2
    assert main(["run", "my-app", *there(superlink)]) == expected
    assert main(["build", "--app", "my-app"]) == expected
    assert len(superlink.control.started) == (said is None)
    assert (said or "") in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["chat"],
        ["app", "publish", "x"],
        ["federation", "simulation-config", "--num-supernodes", "3"],
        ["install", "x.fab"],
    ],
)
def test_what_is_not_offered_says_what_it_would_need(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--help"], ["federation", "invite", "-h"], ["federation", "--help"], ["run", "--help"], ["up", "--help"], ["-V"]],
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["up", "--help"], ["supernode", "list", "--help"]])
def test_help_loads_nothing_that_takes_its_time(words: list[str]) -> None:
    code = f"""
import sys
from trellis_cli.main import main
assert main({words!r}) == 0
print(sorted({{"grpc", "google", "rich", "cryptography", "pydantic", "asyncio"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_config_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".flwr").mkdir()
    (home / ".flwr" / "config.toml").write_text('[superlink]\ndefault = "b"\n[superlink.a]\n[superlink.b]\n')
    assert main(["config", "list", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"superlink": ["a", "b"], "default": "b"}
