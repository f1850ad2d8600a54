"""The guest: hosts one Flower App's code. Run by the app's own interpreter; needs the standard library and flwr only.

    PYTHON guest.py FD

The process on socket FD is the zygote: it imports what apps have in common once and forks for each piece of work. A
fork gets its own socket, standard output and standard error from the runner and speaks frames (frames.py): 4 bytes
length of a JSON header (big-endian), the header, then the buffers whose lengths the header names in "buffers"; records
name their buffers by place.

Facts of flwr that this file stands on (releases 1.20-1.42): the public classes of `flwr.common` and `flwr.server`; the
private fields of Metadata and Message that a Grid has to fill; `TaskIdentity`, which 1.38 and later ask for the sender.
"""

import array
import ctypes
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback

LIBC = ctypes.CDLL(None)
LENGTH = struct.Struct(">I")
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


# ---- frames --------------------------------------------------------------------------------------------------------


class Wire:
    """Frames over a stream socket; several threads may send."""

    def __init__(self, sock):
        self.sock = sock
        self.lock = threading.Lock()

    def send(self, header, buffers=()):
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        header["buffers"] = [len(view) for view in views]
        head = json.dumps(header).encode()
        small = sum(len(view) for view in views) < 65536
        with self.lock:
            if small:
                self.sock.sendall(b"".join([LENGTH.pack(len(head)), head, *views]))
                return
            self.sock.sendall(LENGTH.pack(len(head)) + head)
            for view in views:
                self.sock.sendall(view)

    def receive(self):
        """(header, buffers); (None, []) once the other side is gone."""
        length = self.exactly(LENGTH.size)
        if length is None:
            return None, []
        header = json.loads(bytes(self.exactly(LENGTH.unpack(length)[0]) or b"null"))
        if header is None:
            return None, []
        buffers = [self.exactly(size) for size in header.get("buffers", ())]
        return (None, []) if any(buffer is None for buffer in buffers) else (header, buffers)

    def exactly(self, size):
        buffer = bytearray(size)
        view = memoryview(buffer)
        done = 0
        while done < size:
            count = self.sock.recv_into(view[done:])
            if count == 0:
                return None
            done += count
        return buffer


class Frame:
    """The buffers of a frame that is being made. The same bytes object gets one place, however often it is added."""

    def __init__(self):
        self.buffers = []
        self.places = {}

    def add(self, data):
        place = self.places.get(id(data))
        if place is None:
            place = self.places[id(data)] = len(self.buffers)
            self.buffers.append(data)  # keeps it alive, so its id stays its own
        return place


# ---- flwr, whatever its release --------------------------------------------------------------------------------------


class Flower:
    """The classes of the installed flwr, and conversions between its records and frames."""

    def __init__(self):
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
        self.version = flwr.__version__
        self.Array, self.ArrayRecord, self.MetricRecord, self.ConfigRecord = (
            Array,
            ArrayRecord,
            MetricRecord,
            ConfigRecord,
        )
        self.Context, self.Error, self.Message, self.RecordDict = Context, Error, Message, RecordDict
        self.Grid, self.ServerApp, self.ClientApp, self.TaskIdentity = Grid, ServerApp, ClientApp, TaskIdentity

    def identify(self, run_id, node_id, task_id):
        if self.TaskIdentity is not None:
            self.TaskIdentity.run_id = run_id
            self.TaskIdentity.node_id = node_id
            self.TaskIdentity.task_id = task_id

    def records_out(self, records, frame):
        """Describes a RecordDict; its buffers are added to the frame, one that is there already only once.

        Metric and config records travel as flwr itself encodes them.
        """
        described = []
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

    def records_in(self, described, buffers):
        records = self.RecordDict()
        for key, kind, content in described:
            if kind == "array":
                record = self.ArrayRecord()
                for name, dtype, shape, stype, place in content:
                    data = bytes(buffers[place])
                    record[name] = self.Array(dtype=dtype, shape=tuple(shape), stype=stype, data=data)
            else:
                record = (self.MetricRecord if kind == "metric" else self.ConfigRecord).inflate(bytes(buffers[content]))
            records[key] = record
        return records

    def message_out(self, message, frame):
        metadata = {name: getattr(message.metadata, name, None) for name in METADATA}
        if message.has_error():
            return {"metadata": metadata, "error": [int(message.error.code), message.error.reason or ""]}
        return {"metadata": metadata, "records": self.records_out(message.content, frame)}

    def message_in(self, described, buffers):
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

    def context(self, work, records):
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

    def load(self, work, kind, expected):
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

    def __init__(self, wire):
        self.wire = wire
        self.condition = threading.Condition()
        self.answers = {}
        self.open = set()
        self.last = 0
        self.broken = False
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        while True:
            try:
                header, buffers = self.wire.receive()
            except OSError:
                header, buffers = None, []
            with self.condition:
                if header is None:
                    self.broken = True
                elif header["id"] in self.open:
                    self.answers.setdefault(header["id"], []).append((header, buffers))
                self.condition.notify_all()
                if self.broken:
                    return

    def begin(self, header, buffers=()):
        with self.condition:
            self.last += 1
            number = self.last
            self.open.add(number)
        header["id"] = number
        self.wire.send(header, buffers)
        return number

    def next(self, number, deadline=None):
        """The next answer to this request; None at the deadline (time.monotonic())."""
        with self.condition:
            while not self.answers.get(number):
                if self.broken:
                    raise ConnectionError("The executor that hosts this app is gone.")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self.condition.wait(left)
            header, buffers = self.answers[number].pop(0)
        if header.get("failed"):
            raise RuntimeError(header["failed"])
        return header, buffers

    def end(self, number):
        with self.condition:
            self.open.discard(number)
            self.answers.pop(number, None)

    def ask(self, header, buffers=()):
        number = self.begin(header, buffers)
        try:
            return self.next(number)
        finally:
            self.end(number)


def make_grid(flower, calls, work):
    """A Grid whose other end is the runner."""

    class Run:
        def __init__(self):
            self.run_id = work["run_id"]
            self.fab_id = work["fab_id"]
            self.fab_version = work["fab_version"]
            self.fab_hash = work["fab_hash"]
            self.override_config = work["override_config"]

    run = Run()

    class GuestGrid(flower.Grid):
        def set_run(self, run):
            """The run is given; flwr's own programs set it here."""

        @property
        def run(self):
            return run

        def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
            return flower.Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

        def get_node_ids(self):
            header, _ = calls.ask({"op": "nodes"})
            return [node["node_id"] for node in header["nodes"]]

        def get_nodes(self):
            header, _ = calls.ask({"op": "nodes"})
            from flwr.proto.node_pb2 import NodeInfo

            return [NodeInfo(node_id=node["node_id"]) for node in header["nodes"]]

        def push_messages(self, messages):
            messages = list(messages)
            frame, described = Frame(), []
            for message in messages:
                message.metadata.__dict__["_run_id"] = work["run_id"]
                message.metadata.__dict__["_src_node_id"] = NODE_OF_SUPERLINK
                described.append(flower.message_out(message, frame))
            header, _ = calls.ask({"op": "push", "messages": described}, frame.buffers)
            for message, message_id in zip(messages, header["message_ids"]):  # noqa: B905  (Python 3.9)
                message.metadata.__dict__["_message_id"] = message_id
            return header["message_ids"]

        def pull_messages(self, message_ids):
            return list(self.replies(list(message_ids), 0.0))

        def send_and_receive(self, messages, *, timeout=None):
            message_ids = [one for one in self.push_messages(messages) if one]
            return list(self.replies(message_ids, timeout))

        def replies(self, message_ids, timeout):
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


def failure(error):
    """How a reply names an exception: its class and its text (Flower 1.20-1.42)."""
    return "%s:<%r>" % (type(error), str(error))


def missing_module(error, work):
    """What to do about an import that failed, or None where the app's own code is at fault."""
    name = getattr(error, "name", None)
    if not isinstance(error, ModuleNotFoundError) or not name:
        return None
    top = name.partition(".")[0]
    own = (top, top + ".py")
    if any(os.path.exists(os.path.join(work["app_dir"], one)) for one in own):
        return None
    return "The app needs the module %r, which %s does not have; install it there: %s -m pip install %s" % (
        name,
        sys.executable,
        sys.executable,
        top,
    )


def tell(error, work):
    hint = missing_module(error, work)
    traceback.print_exc()
    if hint:
        print(hint, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return hint


def run_client(flower, wire, before):
    """One message after the other as long as the runner sends any (one, unless it keeps the guest for the run)."""
    app = None
    while True:
        work, buffers = wire.receive()
        if work is None:
            return
        flower.identify(work["run_id"], work["node_id"], work["task_id"])
        started = time.monotonic()
        try:
            message = flower.message_in(work["message"], buffers)
            context = flower.context(work, flower.records_in(work["state"], buffers))
            try:
                if app is None:
                    app = flower.load(work, "ClientApp", flower.ClientApp)
            except Exception as error:
                hint = tell(error, work)
                wire.send({"op": "error", "code": LOAD_FAILED, "reason": hint or failure(error)})
                continue
            started = time.monotonic()
            reply = app(message, context)
            frame = Frame()
            described = flower.message_out(reply, frame)
            state = flower.records_out(context.state, frame)
            runtime = time.monotonic() - started
        except Exception as error:
            hint = tell(error, work)
            wire.send({"op": "error", "code": RAISED, "reason": hint or failure(error)})
            continue
        flush()
        wire.send(
            {
                "op": "reply",
                "message": described,
                "state": state,
                "runtime": runtime,
                "modules": outside(before, work["app_dir"]),
            },
            frame.buffers,
        )


def run_server(flower, wire, before):
    work, buffers = wire.receive()
    if work is None:
        return
    calls = Calls(wire)
    try:
        flower.identify(work["run_id"], NODE_OF_SUPERLINK, work["task_id"])
        grid = make_grid(flower, calls, work)
        context = flower.context(work, flower.records_in(work["state"], buffers))
        app = flower.load(work, "ServerApp", flower.ServerApp)
        calls.ask({"op": "running"})
        app(grid=grid, context=context)
        frame = Frame()
        state = flower.records_out(context.state, frame)
    except SystemExit as error:
        flush()
        if error.code not in (None, 0):
            wire.send({"op": "failed", "reason": "The ServerApp called sys.exit(%r)." % (error.code,)})
            return
        wire.send({"op": "completed", "state": None, "modules": []})
        return
    except BaseException as error:
        hint = tell(error, work)
        text = str(error) or type(error).__name__
        wire.send({"op": "failed", "reason": hint or "%s: %s" % (type(error).__name__, text)})
        return
    flush()
    wire.send({"op": "completed", "state": state, "modules": outside(before, work["app_dir"])}, frame.buffers)


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # the app closed it


def outside(before, app_dir):
    """Modules that the app brought in from outside its own folder: worth importing before the next fork."""
    found = []
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name in before or name == "__main__" or not path or path.startswith(app_dir):
            continue
        found.append(name)
    return found


# ---- the zygote ----------------------------------------------------------------------------------------------------


def receive_order(control):
    """(order, descriptors) from the runner; (None, []) once it is gone."""
    descriptors = array.array("i")
    data, ancillary, _, _ = control.recvmsg(65536, socket.CMSG_SPACE(3 * descriptors.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return (json.loads(data) if data else None), list(descriptors)


def in_fork(flower, order, descriptors, control, before):
    """Everything a fork does; never returns."""
    code = 1
    try:
        # When the zygote ends, however it ends, so does this process.
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        control.close()
        work, out, err = descriptors
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        wire = Wire(socket.socket(fileno=work))
        (run_server if order["kind"] == "server" else run_client)(flower, wire, before)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        flush()
        os._exit(code)


def preimport(names):
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:
            continue  # the app will meet the same error, where it is told
    gc.freeze()


def main():
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    # Packages, so one recvmsg is one order.
    try:
        flower = Flower()
    except ImportError as error:
        text = "%s cannot host Flower Apps: %s. Install flwr there: %s -m pip install flwr" % (
            sys.executable,
            error,
            sys.executable,
        )
        control.send(json.dumps({"op": "unfit", "reason": text}).encode())
        return
    preimport(["numpy"])
    before = set(sys.modules)
    wake_out, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_in)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    control.send(json.dumps({"op": "ready", "flwr": flower.version, "python": sys.version.split()[0]}).encode())
    running = {}
    while True:
        ready, _, _ = select.select([control, wake_out], [], [])
        if wake_out in ready:
            os.read(wake_out, 4096)
        if control in ready:
            order, descriptors = receive_order(control)
            if order is None:
                return
            if order["op"] == "preimport":
                preimport(order["modules"])
                before = set(sys.modules)
            elif order["op"] == "fork":
                pid = os.fork()
                if pid == 0:
                    in_fork(flower, order, descriptors, control, before)
                for descriptor in descriptors:
                    os.close(descriptor)
                running[pid] = order["number"]
                control.send(json.dumps({"op": "forked", "number": order["number"], "pid": pid}).encode())
        while running:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in running:
                code = os.waitstatus_to_exitcode(status)
                control.send(json.dumps({"op": "ended", "number": running.pop(pid), "code": code}).encode())


if __name__ == "__main__":
    main()
