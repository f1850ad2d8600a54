"""Everything an app could try. Each finding is a line; what was tried and failed is counted, so that nobody takes a
hunt that did nothing for one that found nothing."""

import ctypes
import os
import re
import socket
import ssl
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc

SECRET = re.compile(rb"PRIVATE KEY-----|flwr-oidc|join[-_]token", re.IGNORECASE)
_SKIPPED = ("/proc", "/sys", "/dev", "/usr", "/lib", "/opt", "/bin", "/sbin")
_LET_IN = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
_PTRACE_SEIZE = 0x4206  # unlike PTRACE_ATTACH it leaves the other process running


class Hunt:
    def __init__(self) -> None:
        self.found: list[str] = []
        self.met: list[str] = []
        self.tried = 0

    def everything(self, doors: list[str]) -> str:
        """`doors`: host:port of services. The report: how much was tried, the hosts' processes that were met, and
        the findings."""
        for search in (self.environment, self.files, self.descriptors, self.processes):
            for finding in search():
                self.found.append(finding)
        for door in doors:
            self.found += self.knock(door)
        return "\n".join([f"tried {self.tried}", *(f"met {one}" for one in self.met), *self.found])

    def environment(self) -> Iterator[str]:
        for name, value in os.environ.items():
            self.tried += 1
            if re.search("token|secret|passw|private|credential", name, re.IGNORECASE) or SECRET.search(value.encode()):
                yield f"variable {name}"

    def files(self) -> Iterator[str]:
        """Keys and tokens in the whole file system."""
        for folder, folders, names in os.walk("/"):
            if folder == "/":
                folders[:] = [one for one in folders if f"/{one}" not in _SKIPPED]
            folders[:] = [one for one in folders if one != "site-packages"]
            for name in names:
                path = os.path.join(folder, name)
                try:
                    if not stat.S_ISREG(os.lstat(path).st_mode):
                        continue
                    self.tried += 1
                    with open(path, "rb") as file:
                        content = file.read(1 << 20)
                except OSError:
                    continue
                if SECRET.search(content) and "hunter" not in path:
                    yield f"file {path}"

    def descriptors(self) -> Iterator[str]:
        """What was left open; the socket pair to whoever hosts us is ours to have."""
        for name in os.listdir("/proc/self/fd"):
            self.tried += 1
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if re.search(r"\.(key|pem|crt|db)|token|secret|tls", target):
                yield f"descriptor {target}"

    def processes(self, pids: Iterable[int] | None = None) -> Iterator[str]:
        """Other processes' environments, memory and descriptors, and holding on to them; None: of all there are."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        for pid in pids or [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            if pid == os.getpid() or not _of_host(pid):
                continue
            self.tried += 1
            self.met.append(_name(pid))
            for what in ("environ", "mem", "maps"):
                try:
                    with open(f"/proc/{pid}/{what}", "rb") as file:
                        if what == "mem" or file.read(1):
                            yield f"/proc/{pid}/{what} of {_name(pid)}"
                except OSError:
                    pass
            try:
                if os.listdir(f"/proc/{pid}/fd"):
                    yield f"/proc/{pid}/fd of {_name(pid)}"
            except OSError:
                pass
            if libc.ptrace(_PTRACE_SEIZE, pid, None, None) == 0:
                yield f"ptrace of {pid}, {_name(pid)}"

    def knock(self, door: str) -> Iterator[str]:
        """Speaking to the services without a credential, over gRPC with TLS and plain."""
        host, _, port = door.rpartition(":")
        self.tried += 1
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            return  # no such name here, or no way there
        try:
            certificate = ssl.get_server_certificate((host, int(port)), timeout=5).encode()
        except OSError:
            certificate = None
        channels = [grpc.insecure_channel(door)]
        if certificate is not None:
            channels.append(grpc.secure_channel(door, grpc.ssl_channel_credentials(certificate)))
        for channel in channels:
            for method in (
                "/trellis.appio.v1.ClientAppIO/Attend",
                "/trellis.appio.v1.ServerAppIO/Attend",
                "/flwr.proto.Fleet/PullMessages",
                "/flwr.proto.Control/ListRuns",
            ):
                self.tried += 1
                try:
                    channel.unary_unary(method)(b"", timeout=5)
                    yield f"{door} answers {method}"
                except grpc.RpcError as error:
                    if error.code() in _LET_IN:  # what was said made no sense, but nobody asked who says it
                        yield f"{door} looks at {method}"
            channel.close()


def _of_host(pid: int) -> bool:
    """Not the guest's own: its interpreter's zygote is an app's process, too, and holds nothing."""
    return b"guest.py" not in _cmdline(pid)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _name(pid: int) -> str:
    return _cmdline(pid).replace(b"\0", b" ").decode(errors="replace")[:200]
