"""The guest: hosts one Flower App's code. Run by the app's own interpreter (Python 3.9 or later), it needs nothing but
the standard library and flwr.

    PYTHON guest.py FD FENCE

FENCE is the path of trellis_kit/fence.py, which keeps apps away from each other's folders; what none of them may see
the runner has hidden already. Where it is empty there is no fence.

The process on socket FD is the zygote: it imports what apps have in common once and forks for each piece of work. A
fork gets its own socket, standard output and standard error from the runner and speaks frames (frames.py): 4 bytes
length of a JSON header (big-endian), the header, then the buffers whose lengths the header names in "buffers"; records
name their buffers by place.

Zygote and forks are subreapers: what an app starts and leaves behind, `setsid` or not, becomes the zygote's child when
its fork ends, and is killed. When the runner ends, however it ends, the zygote kills all that is below it.

Facts of flwr that this file stands on (releases 1.20-1.42): the public classes of `flwr.common` and `flwr.server`; the
private fields of Metadata and Message that a Grid has to fill; `TaskIdentity`, which 1.38 and later ask for the sender.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

Header = dict[str, Any]
Answer = tuple[Header, list[bytes]]

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LENGTH = struct.Struct(">I")
TOGETHER = 64 * 1024  # bytes up to which a frame is copied together and sent at once
NODE_OF_SUPERLINK = 1
METADATA = (
    "run_id",
    "message_id",
    "src_node_id",
    "dst_node_id",
    "reply_to_message_id",
    "group_id",
    "ttl",
    "message_type",
    "created_at",
    "src_task_id",
    "dst_task_id",
)
# A reply's error codes (Flower 1.20-1.42).
LOAD_FAILED, RAISED = 1, 2
# The environment of apps in the images trellis/serverapp and trellis/clientapp.
IN_IMAGES = "/app/venv"
# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "Bio": "biopython",
    "dotenv": "python-dotenv",
}


# ---- frames --------------------------------------------------------------------------------------------------------


class Wire:
    """Frames over a stream socket; several threads may send."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)  # or as much as the kernel allows
        self.lock = threading.Lock()
        self.owner = os.getpid()

    def send(self, header: Header, buffers: Sequence[Any] = ()) -> None:
        if os.getpid() != self.owner:
            raise RuntimeError("A process that the app forked cannot speak for it.")
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        header["buffers"] = [len(view) for view in views]
        head = json.dumps(header).encode()
        with self.lock:
            if sum(header["buffers"]) < TOGETHER:
                self.sock.sendall(b"".join([LENGTH.pack(len(head)), head, *views]))
                return
            self.sock.sendall(LENGTH.pack(len(head)) + head)
            for view in views:
                self.sock.sendall(view)

    def receive(self) -> Answer | None:
        """The next frame; None once the other side is gone."""
        try:
            length = self.exactly(LENGTH.size)
            header = json.loads(self.exactly(LENGTH.unpack(length)[0]))
            return header, [self.exactly(size) for size in header.get("buffers", ())]
        except (EOFError, OSError):
            return None

    def exactly(self, size: int) -> bytes:
        """Received into the bytes object that the app then gets: nothing is copied or zeroed before."""
        if size == 0:
            return b""
        data = self.sock.recv(size, socket.MSG_WAITALL)
        while len(data) < size:  # a signal came between, or the end
            more = self.sock.recv(size - len(data), socket.MSG_WAITALL)
            if not more:
                raise EOFError
            data += more
        return data


class Frame:
    """The buffers of a frame that is being made. The same bytes object gets one place, however often it is added."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []
        self.places: dict[int, int] = {}

    def add(self, data: Any) -> int:
        place = self.places.get(id(data))
        if place is None:
            place = self.places[id(data)] = len(self.buffers)
            self.buffers.append(data)  # keeps it alive, so its id stays its own
        return place


# ---- flwr, whatever its release --------------------------------------------------------------------------------------


class Flower:
    """The classes of the installed flwr, and conversions between its records and frames."""

    def __init__(self) -> None:
        import flwr
        from flwr.common import (
            Array,
            ArrayRecord,
            ConfigRecord,
            Context,
            Error,
            Message,
            MetricRecord,
            RecordDict,
        )
        from flwr.server import Grid, ServerApp

        try:
            from flwr.clientapp import ClientApp
        except ImportError:
            from flwr.client import ClientApp
        try:
            from flwr.supercore.task_identity import TaskIdentity
        except ImportError:
            TaskIdentity = None  # before 1.38
        self.version: str = flwr.__version__
        self.Array, self.ArrayRecord, self.MetricRecord = Array, ArrayRecord, MetricRecord
        self.ConfigRecord, self.RecordDict = ConfigRecord, RecordDict
        self.Context, self.Error, self.Message = Context, Error, Message
        self.Grid, self.ServerApp, self.ClientApp, self.TaskIdentity = Grid, ServerApp, ClientApp, TaskIdentity

    def identify(self, run_id: int, node_id: int, task_id: int) -> None:
        if self.TaskIdentity is not None:
            self.TaskIdentity.run_id = run_id
            self.TaskIdentity.node_id = node_id
            self.TaskIdentity.task_id = task_id

    def records_out(self, records: Any, frame: Frame) -> list[Any]:
        """Describes a RecordDict; its buffers are added to the frame, one that is there already only once.

        Metric and config records travel as flwr itself encodes them.
        """
        described: list[Any] = []
        for key, record in records.items():
            if isinstance(record, self.ArrayRecord):
                arrays = [
                    [name, one.dtype, list(one.shape), one.stype, frame.add(one.data)] for name, one in record.items()
                ]
                described.append([key, "array", arrays])
            else:
                kind = "metric" if isinstance(record, self.MetricRecord) else "config"
                described.append([key, kind, frame.add(record.deflate())])
        return described

    def records_in(self, described: Sequence[Any], buffers: Sequence[bytes]) -> Any:
        records = self.RecordDict()
        for key, kind, content in described:
            if kind == "array":
                record = self.ArrayRecord()
                for name, dtype, shape, stype, place in content:
                    record[name] = self.Array(dtype=dtype, shape=tuple(shape), stype=stype, data=buffers[place])
            else:
                record = (self.MetricRecord if kind == "metric" else self.ConfigRecord).inflate(buffers[content])
            records[key] = record
        return records

    def message_out(self, message: Any, frame: Frame) -> Header:
        metadata = {name: getattr(message.metadata, name, None) for name in METADATA}
        if message.has_error():
            return {"metadata": metadata, "error": [int(message.error.code), message.error.reason or ""]}
        return {"metadata": metadata, "records": self.records_out(message.content, frame)}

    def message_in(self, described: Header, buffers: Sequence[bytes]) -> Any:
        given = described["metadata"]
        message = self.Message(
            self.RecordDict(), given["dst_node_id"], given["message_type"], ttl=given["ttl"], group_id=given["group_id"]
        )
        for name in METADATA:
            if given.get(name) is not None or name not in ("src_task_id", "dst_task_id"):
                message.metadata.__dict__["_" + name] = given[name]
            elif "_" + name in message.metadata.__dict__:
                message.metadata.__dict__["_" + name] = None
        if described.get("error") is not None:
            code, reason = described["error"]
            message.__dict__["_content"] = None
            message.__dict__["_error"] = self.Error(code, reason)
        else:
            message.__dict__["_content"] = self.records_in(described["records"], buffers)
        return message

    def context(self, work: Header, records: Any) -> Any:
        values = {
            "run_id": work["run_id"],
            "node_id": work["node_id"],
            "node_config": work["node_config"],
            "state": records,
            "run_config": work["run_config"],
        }
        if work.get("series_id"):
            try:
                return self.Context(series_id=work["series_id"], **values)
            except TypeError:
                pass  # before 1.31 runs had no series
        return self.Context(**values)

    def load(self, work: Header, kind: str, expected: type) -> Any:
        """The app object that the FAB's pyproject.toml names, e.g. `digits.client_app:app`."""
        sys.path.insert(0, work["app_dir"])
        os.chdir(work["work_dir"])
        name, _, attribute = work["reference"].partition(":")
        app = importlib.import_module(name)
        for part in attribute.split("."):
            app = getattr(app, part)
        if not isinstance(app, expected):
            raise TypeError("%r is a %s, not a %s" % (work["reference"], type(app).__name__, kind))
        return app


# ---- the ServerApp's connection ------------------------------------------------------------------------------------


class Calls:
    """Requests to the runner and what comes back, from any thread."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.condition = threading.Condition()
        self.answers: dict[int, list[Answer]] = {}
        self.open: set[int] = set()
        self.last = 0
        self.broken = False
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        while True:
            answer = self.wire.receive()
            with self.condition:
                if answer is None:
                    self.broken = True
                elif answer[0]["id"] in self.open:
                    self.answers.setdefault(answer[0]["id"], []).append(answer)
                self.condition.notify_all()
                if self.broken:
                    return

    def begin(self, header: Header, buffers: Sequence[Any] = ()) -> int:
        with self.condition:
            self.last += 1
            number = self.last
            self.open.add(number)
        header["id"] = number
        self.wire.send(header, buffers)
        return number

    def next(self, number: int, deadline: float | None = None) -> Answer | None:
        """The next answer to this request; None at the deadline (time.monotonic())."""
        with self.condition:
            while not self.answers.get(number):
                if self.broken:
                    raise ConnectionError("The executor that hosts this app is gone.")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self.condition.wait(left)
            answer = self.answers[number].pop(0)
        if answer[0].get("failed"):
            raise RuntimeError(answer[0]["failed"])
        return answer

    def end(self, number: int) -> None:
        with self.condition:
            self.open.discard(number)
            self.answers.pop(number, None)

    def ask(self, header: Header, buffers: Sequence[Any] = ()) -> Header:
        number = self.begin(header, buffers)
        try:
            answer = self.next(number)
            assert answer is not None  # there was no deadline
            return answer[0]
        finally:
            self.end(number)


def make_grid(flower: Flower, calls: Calls, work: Header) -> Any:
    """A Grid whose other end is the runner."""

    class Run:
        def __init__(self) -> None:
            self.run_id = work["run_id"]
            self.fab_id = work["fab_id"]
            self.fab_version = work["fab_version"]
            self.fab_hash = work["fab_hash"]
            self.override_config = work["override_config"]

    run = Run()
    base: Any = flower.Grid

    class GuestGrid(base):  # type: ignore[misc]  # whatever release it is of
        def set_run(self, run: Any) -> None:
            """The run is given; flwr's own programs set it here."""

        @property
        def run(self) -> Run:
            return run

        def create_message(
            self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
        ) -> Any:
            return flower.Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

        def get_node_ids(self) -> list[int]:
            return [node["node_id"] for node in calls.ask({"op": "nodes"})["nodes"]]

        def get_nodes(self) -> list[Any]:
            from flwr.proto.node_pb2 import NodeInfo

            return [NodeInfo(node_id=node_id) for node_id in self.get_node_ids()]

        def push_messages(self, messages: Iterable[Any]) -> list[str]:
            messages = list(messages)
            frame, described = Frame(), []
            for message in messages:
                message.metadata.__dict__["_run_id"] = work["run_id"]
                message.metadata.__dict__["_src_node_id"] = NODE_OF_SUPERLINK
                described.append(flower.message_out(message, frame))
            message_ids: list[str] = calls.ask({"op": "push", "messages": described}, frame.buffers)["message_ids"]
            for message, message_id in zip(messages, message_ids):  # noqa: B905  (Python 3.9)
                message.metadata.__dict__["_message_id"] = message_id
            return message_ids

        def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
            return list(self.replies(list(message_ids), 0.0))

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            message_ids = [one for one in self.push_messages(messages) if one]
            return list(self.replies(message_ids, timeout))

        def replies(self, message_ids: list[str], timeout: float | None) -> Iterator[Any]:
            """Replies as they come; with timeout 0 those that are there now."""
            deadline = None if timeout is None else time.monotonic() + timeout
            if not message_ids:
                return
            number = calls.begin({"op": "replies", "ids": message_ids, "now": timeout == 0.0})
            try:
                while True:
                    answer = calls.next(number, None if timeout == 0.0 else deadline)
                    if answer is None:
                        calls.wire.send({"op": "forget", "id": number})
                        return
                    header, buffers = answer
                    if header.get("done"):
                        return
                    yield flower.message_in(header["message"], buffers)
            finally:
                calls.end(number)

    return GuestGrid()


# ---- work ----------------------------------------------------------------------------------------------------------


def failure(error: BaseException) -> str:
    """How a reply names an exception: its class and its text (Flower 1.20-1.42)."""
    return "%s:<%r>" % (type(error), str(error))


def advice(error: BaseException, work: Header) -> str | None:
    """What the operator can do about an exception; None where it is the app's own affair."""
    if isinstance(error, MemoryError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            return "The app needs more memory than it may have: %d MiB of address space (--guest-memory)" % (
                limit >> 20
            )
        return "The app needs more memory than there is"
    name = getattr(error, "name", None)
    if not isinstance(error, ModuleNotFoundError) or not name:
        return None
    top = name.partition(".")[0]
    if any(os.path.exists(os.path.join(work["app_dir"], own)) for own in (top, top + ".py")):
        return None
    text = "The app needs the module %r, which %s does not have; install it there: %s"
    package = DISTRIBUTIONS.get(top, top)
    if sys.prefix == IN_IMAGES:
        return text % (name, "the image of this executor", "build one FROM it with `RUN pip install %s`" % package)
    return text % (name, sys.executable, "%s -m pip install %s" % (sys.executable, package))


def tell(error: BaseException, work: Header) -> str | None:
    """The traceback and the advice, into the log."""
    traceback.print_exc()
    text = advice(error, work)
    if text:
        print(text, file=sys.stderr)
    flush()
    return text


def move_in(work: Header, fence: Any) -> None:
    """The run's folders become this process's own, and all it can reach of the executor's; no app's code ran before."""
    if fence is not None:
        fence.allow(work["app_dir"], work["work_dir"])
        fence.close()
    os.environ["HOME"] = work["work_dir"]
    os.environ["FLWR_HOME"] = os.path.join(work["work_dir"], ".flwr")


def run_client(flower: Flower, wire: Wire, before: set[str], fence: Any) -> None:
    """One message after the other as long as the runner sends any (one, unless it keeps the guest for the run)."""
    app: Any = None
    sys.argv = ["flwr-clientapp"]
    while True:
        given = wire.receive()
        if given is None:
            return
        work, buffers = given
        if app is None:
            move_in(work, fence)
        frame, code = Frame(), LOAD_FAILED
        try:
            flower.identify(work["run_id"], work["node_id"], work["task_id"])
            message = flower.message_in(work["message"], buffers)
            context = flower.context(work, flower.records_in(work["state"], buffers))
            del buffers, given
            if app is None:
                app = flower.load(work, "ClientApp", flower.ClientApp)
            code = RAISED
            started = time.monotonic()
            reply = app(message, context)
            answer = {
                "op": "reply",
                "message": flower.message_out(reply, frame),
                "state": flower.records_out(context.state, frame),
                "runtime": time.monotonic() - started,
            }
        except SystemExit as error:
            flush()
            wire.send({"op": "error", "code": code, "reason": "The ClientApp called sys.exit(%r)" % (error.code,)})
            return
        except BaseException as error:
            text = tell(error, work)
            wire.send({"op": "error", "code": code, "reason": text or failure(error)})
            continue
        flush()
        wire.send({**answer, "modules": outside(before, work["app_dir"])}, frame.buffers)
        # Kept until the next message otherwise.
        del message, context, reply, answer, frame


def run_server(flower: Flower, wire: Wire, before: set[str], fence: Any) -> None:
    given = wire.receive()
    if given is None:
        return
    work, buffers = given
    move_in(work, fence)  # before there is a second thread, which would stay outside
    sys.argv = ["flwr-serverapp"]
    calls, frame = Calls(wire), Frame()
    try:
        flower.identify(work["run_id"], NODE_OF_SUPERLINK, work["task_id"])
        grid = make_grid(flower, calls, work)
        context = flower.context(work, flower.records_in(work["state"], buffers))
        del buffers, given
        app = flower.load(work, "ServerApp", flower.ServerApp)
        calls.ask({"op": "running"})
        app(grid=grid, context=context)
        state = flower.records_out(context.state, frame)
    except SystemExit as error:
        flush()
        if error.code in (None, 0):
            wire.send({"op": "completed", "state": None, "modules": []})
        else:
            wire.send({"op": "failed", "reason": "The ServerApp called sys.exit(%r)" % (error.code,)})
        return
    except BaseException as error:
        text = tell(error, work)
        wire.send({"op": "failed", "reason": text or "%s: %s" % (type(error).__name__, error)})
        return
    flush()
    wire.send({"op": "completed", "state": state, "modules": outside(before, work["app_dir"])}, frame.buffers)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # the app closed or replaced it


def outside(before: set[str], app_dir: str) -> list[str]:
    """Modules that the app brought in from outside its own folder, in its order: worth importing before the next fork.

    Looks at the newest only: to touch each of thousands of modules means to copy their memory in the fork (6 ms).
    """
    found = []
    for name in reversed(sys.modules):
        if name in before:
            break
        path = getattr(sys.modules[name], "__file__", None)
        if isinstance(path, str) and not path.startswith(app_dir):
            found.append(name)
    return found[::-1]


# ---- a fork --------------------------------------------------------------------------------------------------------


def in_fork(
    flower: Flower, kind: str, descriptors: Sequence[int], foreign: Iterable[int], before: set[str], fences: Any
) -> NoReturn:
    """Everything a fork does. `foreign` are the zygote's own descriptors."""
    code = 1
    try:
        # When the zygote ends, however it ends, so does this process.
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in foreign:
            os.close(descriptor)
        work, out, err = descriptors
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        wire = Wire(socket.socket(fileno=work))
        fence = fences and fences.Fence(hidden=[os.getcwd()], guarded=interpreter())
        (run_server if kind == "server" else run_client)(flower, wire, before, fence)
        code = 0
        end_as_python_does()
    except BaseException:
        traceback.print_exc()
    finally:
        flush()
        os._exit(code)


def interpreter() -> list[str]:
    """Where this interpreter's code lies: who changed it would be in every app that comes after."""
    return [sys.prefix, sys.base_prefix, sys.executable, *(path for path in sys.path if os.path.isabs(path))]


def end_as_python_does() -> None:
    """Waits for threads and runs exit handlers; what else an interpreter does at its end frees what ends anyway."""
    getattr(threading, "_shutdown")()  # noqa: B009  (private, and the same from 3.9 to 3.14)
    getattr(atexit, "_run_exitfuncs")()  # noqa: B009


# ---- the zygote ----------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The direct children of a process, of all its threads."""
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, thread)) as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it ended meanwhile
    return found


def kill_below(pid: int, keep: Iterable[int] = ()) -> None:
    """Kill all that is below a process; stops each one first, so that none can fork meanwhile."""
    queue = [child for child in children(pid) if child not in keep]
    stopped = []
    while queue:
        child = queue.pop()
        try:
            os.kill(child, signal.SIGSTOP)
        except OSError:
            continue
        stopped.append(child)
        queue += children(child)
    for child in stopped:
        try:
            os.kill(child, signal.SIGKILL)
        except OSError:
            continue


class Zygote:
    """Takes orders from the runner, one packet each, and tells it what happens."""

    def __init__(self, control: socket.socket, fences: Any) -> None:
        self.control = control
        self.fences = fences  # the module, or None
        self.running: dict[int, int] = {}  # process id -> the runner's number
        self.before: set[str] = set()
        self.wake, self.waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def tell(self, **news: Any) -> None:
        self.control.send(json.dumps(news).encode())

    def serve(self) -> None:
        """Until the runner is gone."""
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # So far the kernel would have killed this process with the runner, and left what is below it.
        LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
        try:
            flower = Flower()
        except ImportError as error:
            text = "%s cannot host Flower Apps: %s. Install flwr there (%s -m pip install flwr), or use --guest-python"
            self.tell(op="unfit", reason=text % (sys.executable, error, sys.executable))
            return
        self.preimport(["numpy", "numpy.random"])
        signal.set_wakeup_fd(self.waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.tell(op="ready", flwr=flower.version, python=sys.version.split()[0])
        sources: list[Any] = [self.control, self.wake]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self.wake in ready:
                os.read(self.wake, 4096)
            if self.control in ready and not self.take_order(flower):
                return
            self.bury()

    def take_order(self, flower: Flower) -> bool:
        descriptors = array.array("i")
        data, ancillary, _, _ = self.control.recvmsg(1 << 18, socket.CMSG_SPACE(3 * descriptors.itemsize))
        if not data:
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        order = json.loads(data)
        if order["op"] == "preimport":
            self.preimport(order["modules"])
            self.tell(op="imported", modules=order["modules"])
        else:
            self.fork(flower, order, descriptors)
        return True

    def fork(self, flower: Flower, order: Header, descriptors: Sequence[int]) -> None:
        pid = os.fork()
        if pid == 0:
            foreign = (self.control.detach(), self.wake, self.waker)
            in_fork(flower, order["kind"], descriptors, foreign, self.before, self.fences)
        for descriptor in descriptors:
            os.close(descriptor)
        self.running[pid] = order["number"]
        self.tell(op="forked", number=order["number"], pid=pid)

    def preimport(self, names: Iterable[str]) -> None:
        for name in names:
            threads = threading.active_count()
            try:
                importlib.import_module(name)
            except BaseException:
                continue  # the app will meet the same error, where it is told
            if threading.active_count() > threads:
                # Threads do not come along into a fork: forks would miss what this module started.
                self.tell(op="unsafe", module=name)
        self.before = set(sys.modules)
        gc.freeze()

    def bury(self) -> None:
        """Tell of each fork that has ended, once all that it left behind is killed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self.running.pop(pid, None)
            if number is not None:
                kill_below(os.getpid(), self.running)
                self.tell(op="ended", number=number, code=os.waitstatus_to_exitcode(status))


def load_file(path: str) -> Any:
    """A module by its path, under a name that no app asks for."""
    spec = importlib.util.spec_from_file_location("trellis_fence", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]  # the runner's own modules are none of the app's
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    try:
        Zygote(control, load_file(sys.argv[2]) if sys.argv[2] else None).serve()
    except OSError:
        pass  # the runner is gone in the middle of a word
    finally:
        kill_below(os.getpid())


if __name__ == "__main__":
    main()
