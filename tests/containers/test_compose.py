"""The compose files: what comes up, what it may do, and that it trains; stock's own files with our images."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import sys
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen
from zipfile import ZipFile

import pytest
from commands import CommandFailed, command
from compose_world import (
    COMPOSE,
    PROXY,
    ROOT,
    Project,
    accuracy,
    behind_a_proxy,
    docker,
    gateway,
    image,
    inspect,
    ports,
    running,
)
from example_logs import accuracies
from trellis_kit import certificates
from trellis_kit.federation import free_ports
from trellis_testing import StockCli, StockFlwr, stock
from waits import wait_until

DIGITS = ROOT / "examples" / "digits"
LEDGER = ROOT / "tests" / "crash" / "ledger"
ROLES = [
    "clientapp-1",
    "clientapp-2",
    "clientapp-3",
    "serverapp",
    "superlink",
    "supernode-1",
    "supernode-2",
    "supernode-3",
]

pytestmark = [pytest.mark.usefixtures("images"), pytest.mark.timeout(900)]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of examples/digits that belongs to somebody without an account here."""
    copy = tmp_path / "digits"
    shutil.copytree(DIGITS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (copy, *copy.rglob("*")):
        os.chown(path, 12345, 12346)
    copy.chmod(0o700)
    return copy


def test_every_role_is_a_container_that_is_well(plain: Project) -> None:
    containers = plain.containers()
    assert sorted(containers) == ROLES
    for container in containers.values():
        assert inspect(container)["State"]["Health"]["Status"] == "healthy"


@pytest.mark.parametrize("service", ["superlink", "serverapp", "supernode-1", "clientapp-1"])
def test_what_a_container_may(plain: Project, service: str) -> None:
    found = inspect(plain.containers()[service])
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] is None
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    # The same from the inside, of the process that does the work.
    status = plain.python(service, "print(open('/proc/self/status').read())")
    assert re.search(r"^Uid:\s+49999\s+49999\s+49999\s+49999$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    for place in ("/", "/app", "/opt/trellis", "/opt/bin"):
        told = plain.python(
            service,
            f"""
try:
    open({place!r} + "/new", "w")
except OSError as error:
    print(error.strerror)
""",
        )
        assert told.strip() == "Read-only file system"


def test_nobody_of_the_same_uid_reads_what_pid_1_was_started_with(plain: Project) -> None:
    told = plain.python(
        "clientapp-1",
        """
for name in ("environ", "mem"):
    try:
        open(f"/proc/1/{name}", "rb").read(1)
    except OSError as error:
        print(error.strerror)
""",
    )
    assert told.split("\n")[:2] == ["Permission denied"] * 2


ORPHAN = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        while os.getppid() != 1:
            time.sleep(0.01)
        print(os.getpid(), flush=True)
        os._exit(0)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("service", ["superlink", "serverapp", "supernode-1", "clientapp-1"])
def test_what_nobody_waits_for_is_reaped(plain: Project, service: str) -> None:
    """Process 1 takes up whose parent has ended, and it does not stay as a zombie."""
    orphan = int(plain.python(service, ORPHAN))
    gone = f"import os; print(not os.path.exists('/proc/{orphan}'))"
    wait_until(lambda: plain.python(service, gone).strip() == "True", "it is gone", 20)


def open_at(host: str, port: str) -> bool:
    """Whether a port takes connections."""
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        return False
    return True


def test_only_fleet_and_control_are_published(plain: Project) -> None:
    published = {
        service: sorted(port for port, hosts in inspect(container)["NetworkSettings"]["Ports"].items() if hosts)
        for service, container in plain.containers().items()
    }
    assert published.pop("superlink") == ["8000/tcp", "9092/tcp", "9093/tcp"]
    assert not any(published.values())
    for name in ports():  # without TLS to this machine alone, by none of its other addresses
        assert open_at("127.0.0.1", plain.env[name])
        assert not open_at(gateway(plain, "edge"), plain.env[name])


@pytest.mark.parametrize("release", ["1.21.0", "1.36.0"])
async def test_a_stock_command_line_of_this_machine_trains(plain: Project, release: str, tmp_path: Path) -> None:
    control, http = (f"127.0.0.1:{plain.env[name]}" for name in ("CONTROL_PORT", "HTTP_PORT"))
    cli = StockCli(StockFlwr(release), tmp_path, control=control, http=http)
    async with asyncio.timeout(200):
        run = await cli.run(DIGITS, "--run-config", "num-server-rounds=5 min-sites=3")
    assert run.code == 0, run.output
    assert accuracies(run.output)[-1] >= 0.9  # of five rounds


def test_it_trains_and_what_the_command_line_writes_belongs_to_who_ran_it(plain: Project, app: Path) -> None:
    log = plain.cli("flwr", "run", "--stream", app=app)
    assert accuracy(log) >= 0.93
    assert "completed" in plain.cli("flwr", "ls", app=app)
    plain.cli("flwr", "build", app=app)
    fab = next(app.glob("*.fab"))
    assert (fab.stat().st_uid, fab.stat().st_gid) == (12345, 12346)
    # The link to what the ServerApp left leads there from this machine.
    [link] = re.findall(r"^http://\S+$", plain.cli("flwr", "pull", str(stock.started_run(log)), app=app), re.MULTILINE)
    with urlopen(link, timeout=30) as answer:
        assert "model.npz" in ZipFile(BytesIO(answer.read())).namelist()


def test_it_learns_as_much_as_make_demo(plain: Project) -> None:
    """To half a percent: what differs is the order in which a round's replies are added up."""
    guest = ROOT / ".trellis" / "guest" / "bin" / "python"
    demo = command(sys.executable, "-m", "trellis_cli", "demo", "--guest-python", str(guest), str(DIGITS))
    here = plain.cli("flwr", "run", "--stream", app=DIGITS)
    assert len(accuracies(demo)) == len(accuracies(here)) == 11, demo
    assert accuracies(here) == pytest.approx(accuracies(demo), abs=0.005)


def test_what_the_command_line_remembers_is_in_a_volume(plain: Project, app: Path) -> None:
    remembered = "import os; print(os.environ['FLWR_HOME'], os.getuid())"
    write = f"{remembered}; open(os.environ['FLWR_HOME'] + '/credentials', 'w').write('kept')"
    home, uid = plain.cli("/opt/trellis/bin/python", "-c", write, app=app).split()[-2:]
    assert uid == "12345"
    read = "import os; print(open(os.environ['FLWR_HOME'] + '/credentials').read())"
    assert plain.cli("/opt/trellis/bin/python", "-c", read, app=app).split()[-1] == "kept"
    assert f"{plain.name}_cli" in docker("volume", "ls", "-q")
    assert home == "/var/lib/flwr"


@pytest.mark.parametrize(
    "layers",
    [["compose.tls.yaml"], ["compose.subprocess.yaml"], ["compose.tls.yaml", "compose.subprocess.yaml"]],
    ids=" ".join,
)
def test_layers_train(layers: list[str], tmp_path: Path) -> None:
    """Also on a machine whose Docker has a proxy for containers: none leads from one of ours to another."""
    files = [COMPOSE / name for name in ("compose.yaml", *layers)]
    certs = tmp_path / "certs"
    environment = {**ports(), **behind_a_proxy(tmp_path), "CERTS": str(certs), "SERVER_NAME": "fl.example.test"}
    with running(Project(files, environment)) as project:
        containers = project.containers()
        services = set(containers)
        assert f"HTTPS_PROXY={PROXY}" in inspect(containers["supernode-1"])["Config"]["Env"]
        fleet = environment["FLEET_PORT"]
        assert open_at(gateway(project, "edge"), fleet) == ("compose.tls.yaml" in layers)
        if "compose.tls.yaml" in layers:
            assert {"superlink", "localhost", "fl.example.test"} <= {
                *certificates.read(certs / "superlink/tls.crt").names
            }
        if "compose.subprocess.yaml" in layers:
            assert services == {"superlink", "supernode-1", "supernode-2", "supernode-3"}
        else:
            assert services == set(ROLES)
        assert accuracy(project.cli("flwr", "run", "--stream", app=DIGITS)) >= 0.93
        logs = project.compose("logs", "--no-log-prefix")
        assert ("without TLS" in logs.replace("ops listens on 127.0.0.1:8001 without TLS", "")) == (
            "compose.tls.yaml" not in layers or "compose.subprocess.yaml" in layers
        )


OUTSIDE = ("1.24.0", "1.38.0")
SITES = 3


def test_stock_supernodes_come_from_outside_and_certificates_are_renewed_under_their_run(tmp_path: Path) -> None:
    """Two releases on this machine, by the published port and over TLS; the containers run under another uid."""
    certs = tmp_path / "certs"
    environment = {**ports(), "CERTS": str(certs), "TRELLIS_UID": "12345", "TRELLIS_GID": "12346"}
    project = Project([COMPOSE / "compose.yaml", COMPOSE / "compose.tls.yaml"], environment)
    fleet = f"127.0.0.1:{environment['FLEET_PORT']}"
    with running(project), ExitStack() as stock_nodes:
        assert project.python("superlink", "import os; print(os.getuid(), os.getgid())").split() == ["12345", "12346"]
        for number, release in enumerate(OUTSIDE, SITES):
            node = stock.supernode(
                StockFlwr(release),
                f"supernode-{release}",
                tmp_path,
                fleet=fleet,
                http=f"127.0.0.1:{environment['HTTP_PORT']}",
                port=free_ports(1)[0],
                node_config=f"partition-id={number} num-partitions={SITES + len(OUTSIDE)}",
                root_certificates=certs / "ca.crt",
            )
            node.start()
            stock_nodes.callback(node.kill)
        config = f"num-server-rounds=6 min-sites={SITES + len(OUTSIDE)}"
        with project.cli_in_background("flwr", "run", "--stream", "--run-config", config, app=DIGITS) as run:
            wait_until(lambda: "round 2/" in run.log() or run.ended, "the run's second round is over", 400)
            before = shown(fleet)
            project.compose("run", "--rm", "-T", "certs", "certs", "renew", "--all", "--directory", "/certs")
            wait_until(lambda: shown(fleet) != before, "the SuperLink shows its new certificate", 30)
            assert not run.ended, run.log()
            wait_until(lambda: run.ended, "the run is over", 400)
            log = run.log()
        assert len(accuracies(log)) == 7, log
        assert accuracies(log)[-1] >= 0.93
        keys = {line for path in certs.rglob("*.key") for line in path.read_text().splitlines() if len(line) > 40}
        assert len(keys) > SITES
        for container in project.containers().values():
            assert not [line for line in keys if line in docker("inspect", container)]


def shown(address: str) -> str:
    """The certificate that a port shows."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=10)


def test_images_that_were_not_built_are_not_looked_for_elsewhere() -> None:
    """Whoever has the name `trellis` in a public registry is somebody else."""
    environment = {**ports(), "SUPERLINK_IMAGE": "trellis/of-somebody-else"}
    with (
        pytest.raises(CommandFailed, match="No such image: trellis/of-somebody-else"),
        running(Project([COMPOSE / "compose.yaml"], environment)),
    ):
        pass


def test_ten_supernodes_by_one_variable() -> None:
    environment = {**ports(), "SUPERNODES": "10", "APP": str(DIGITS)}
    with running(Project([COMPOSE / "compose.yaml"], environment)) as project:
        assert len(project.containers()) == 22
        log = project.cli("flwr", "run", "--stream", "--run-config", "min-sites=10 num-server-rounds=2", app=DIGITS)
        assert "completed" in log
        listed = project.cli("flwr", "supernode", "list", "--format", "json", app=DIGITS)
        assert listed.count('"online"') == 10, listed


class Awaited(Project):
    """It is not well before something else is done."""

    def up(self) -> None:
        self.compose("up", "--detach")


def test_machines_apart(tmp_path: Path) -> None:
    """A server and two sites that know each other by name, port and ca.crt only; the server's operator lets them in."""
    published = ports()
    certs = tmp_path / "server-certs"
    told = {"CERTS": str(certs), "SERVER_NAME": "fl.example.test", "UNKNOWN_SUPERNODES": "hold"}
    server = Project([COMPOSE / "compose.server.yaml"], {**published, **told})
    named = tmp_path / "names.yaml"
    # This machine, as containers see it.
    named.write_text('services: { supernode: { extra_hosts: ["fl.example.test:host-gateway"] } }\n')
    with running(server):
        sites = []
        for number in range(2):
            environment = {
                "SUPERLINK": f"fl.example.test:{published['FLEET_PORT']}",
                "NETWORK_CA": str(certs / "ca.crt"),
                "NODE_CONFIG": f"partition-id={number} num-partitions=2",
                "CERTS": str(tmp_path / f"site-{number}-certs"),
            }
            sites.append(Awaited([COMPOSE / "compose.site.yaml", named], environment))
        with running(sites[0]), running(sites[1]):
            held: set[str] = set()

            def both_wait() -> bool:
                said = server.cli("flwr", "supernode", "list", "--format", "json", app=DIGITS)
                nodes = json.loads(said[said.index("{") :])["nodes"]
                held.update(node["node-id"] for node in nodes if node.get("held"))
                return len(held) == len(sites)

            wait_until(both_wait, "both sites wait for approval", 120)
            for node in held:
                server.cli("flwr", "supernode", "approve", node, app=DIGITS)
            assert accuracy(server.cli("flwr", "run", "--stream", app=DIGITS)) >= 0.93


@pytest.mark.parametrize("release", ["1.20", "1.24", "1.28"])
def test_stocks_own_files_with_our_images(release: str, tmp_path: Path) -> None:
    text = (Path(__file__).parent / "stock" / f"{release}.yaml").read_text()
    ours = re.sub(r"flwr/(\w+):[\d.]+", lambda match: image(match[1]), text)
    assert "flwr/" not in ours
    file, private = tmp_path / "compose.yaml", tmp_path / "ports.yaml"
    file.write_text(ours)
    private.write_text("services: { superlink: { ports: !reset [] } }\n")  # other tests have theirs
    with running(Project([file, private])) as project:
        # The submitter is on the SuperLink's network, as a person on its machine would be.
        networks = inspect(project.containers()["superlink"])["NetworkSettings"]["Networks"]
        network = next(name for name in networks if name.endswith(("default", "edge")))
        run = ("flwr", "run", ".", "--stream", "--superlink", "superlink:9093", "--insecure")
        log = docker("run", "--rm", "--network", network, "-v", f"{LEDGER}:/app:ro", image("cli"), *run)
        books = [json.loads(line.partition("books ")[2]) for line in log.splitlines() if "books " in line]
        assert [book["replies"] for book in books] == [[[0, 1, None], [1, 1, None]], [[0, 2, None], [1, 2, None]]]


def test_a_container_that_comes_back_to_its_network_is_reached_again(plain: Project, app: Path) -> None:
    """Under another address: the SuperLink listens on a name of that network."""
    container = plain.containers()["superlink"]
    network = f"{plain.name}_serverapp"
    before = inspect(container)["NetworkSettings"]["Networks"][network]["IPAddress"]
    docker("network", "disconnect", network, container)
    # The address that it had is somebody else's meanwhile.
    squatter = docker("run", "-d", "--rm", "--network", network, "--entrypoint", "sleep", image("cli"), "300").strip()
    try:
        docker("network", "connect", "--alias", "superlink", "--alias", "serverappio", network, container)
        assert inspect(container)["NetworkSettings"]["Networks"][network]["IPAddress"] != before

        def again() -> bool:
            found = inspect(container)
            return bool(found["RestartCount"] == 1 and found["State"]["Health"]["Status"] == "healthy")

        wait_until(again, "the SuperLink has begun anew, on its new address", 120)
        log = plain.cli("flwr", "run", "--stream", app=app)
        assert accuracy(log) >= 0.93
    finally:
        docker("rm", "-f", squatter, check=False)
