"""Hosts apps: keeps a process of their interpreter ready and forks a guest from it for each piece of work."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trellis_kit import fence, processes
from trellis_kit.lifecycle import Fatal

from trellis_runner.logs import Sink
from trellis_runner.zygote import END_SECONDS, Guest, GuestProblem, Kind, Start, Zygote

_log = logging.getLogger(__name__)

# Passed on to guests: where programs and libraries are, language, and how many threads numeric libraries use.
_ENVIRONMENT = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_ENVIRONMENT_PREFIXES = ("LC_", "OPENBLAS_", "OMP_", "MKL_", "NUMEXPR_", "CUDA_", "NVIDIA_")

_MODULES = 20_000  # imported ahead at most; torch brings 2,000


Sandbox = Literal["enforce", "try", "off"]


@dataclass(frozen=True)
class GuestSettings:
    """What an operator decides about guests: `hidden` are files and folders that they can neither read nor change,
    `sandbox`: whether a fence keeps them from it. `memory` is in bytes of address space, `cpus` a number of processors.
    """

    python: Path
    work_root: Path
    app_env: Sequence[str] = ()
    app_secrets: Sequence[Path] = ()
    hidden: Sequence[Path] = ()
    sandbox: Sandbox = "try"
    memory: int | None = None
    cpus: int | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def environment(self) -> dict[str, str]:
        """Everything a guest finds in its environment: nothing of Trellis's, and what the operator named."""
        found = {
            name: value
            for name, value in self.environ.items()
            if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
        }
        found.update({name: self.environ[name] for name in self.app_env if name in self.environ})
        for path in self.app_secrets:
            found[f"APP_SECRET_{path.stem.upper().replace('-', '_').replace('.', '_')}"] = str(path.absolute())
        return {
            # Large buffers on huge pages: saving, loading and copying an array of 100 MiB takes half the time then.
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            **found,
            "HOME": str(self.work_root),  # until there is work: then its folder
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def start(self) -> Start:
        """How the interpreter is started."""
        fenced = self.sandbox != "off"
        hidden = self.hidden if fenced else ()
        return Start(self.python, self.work_root, self.environment(), self.memory, self.cpus, hidden, fenced)


class GuestHost:
    """`start()`, then `fork()` for each piece of work and `release()` when it is done; `stop()` ends everything.

    `subreaper` says that this process is one and has no children of its own: whatever else becomes its child was left
    by a zygote that died, and is killed.
    """

    def __init__(self, settings: GuestSettings, *, subreaper: bool = False) -> None:
        self._settings = settings
        self._subreaper = subreaper
        self._zygote: Zygote | None = None
        self._retired: list[Zygote] = []
        self._known: dict[str, None] = {}  # in the apps' order: some modules only work after others
        self._never: set[str] = set()
        self._starting = asyncio.Lock()
        self.flwr_version = ""

    async def start(self) -> None:
        """Start the interpreter and import flwr. GuestProblem when it cannot host apps."""
        sandbox = self._settings.sandbox
        if sandbox == "enforce" and not fence.version():
            raise GuestProblem(
                "This kernel has no Landlock: nothing would keep apps from what this executor's user can reach. Run it "
                "on Linux 5.13 or later with Landlock on, or allow that with --guest-sandbox try."
            )
        self._settings.work_root.mkdir(parents=True, exist_ok=True)
        zygote = self._zygote = await Zygote.start(self._settings.start())
        self.flwr_version = zygote.flwr_version
        zygote.gone.add_done_callback(lambda _: self._sweep())
        zygote.preimport([name for name in self._known if name not in self._never])
        _log.info("Apps are hosted by %s with flwr %s", self._settings.python, self.flwr_version)
        if sandbox == "off" or not fence.version():
            why = "--guest-sandbox is off" if sandbox == "off" else "This kernel has no Landlock"
            _log.warning("%s: apps can read and change whatever the user of this executor can; see docs/limits.md", why)

    async def start_or_fatal(self) -> None:
        """Start as a service does: what keeps apps from being hosted ends it with one sentence."""
        try:
            await self.start()
        except GuestProblem as problem:
            raise Fatal(str(problem)) from problem

    async def fork(self, kind: Kind, sink: Sink | None) -> Guest:
        """A fresh guest whose output goes to `sink` (None: waits until there is one). GuestProblem."""
        async with self._starting:
            if fresh := not self._fit():
                await self.start()
        if fresh:
            self._sweep()
        assert self._zygote is not None
        try:
            return self._zygote.fork(kind, sink)
        except GuestProblem:
            if fresh:
                raise
            self._zygote.stop()  # it died just now
            return await self.fork(kind, sink)

    def _fit(self) -> bool:
        """Whether there is a zygote to fork from. One that died over an import, or whose imports started threads, is
        replaced by one without that module."""
        zygote = self._zygote
        if zygote is None:
            return False
        if not zygote.alive:
            self._never |= zygote.importing
            self._zygote = None
        elif zygote.unsafe:
            _log.info("Imported in each fork, since they start threads: %s", ", ".join(sorted(zygote.unsafe)))
            self._never |= zygote.unsafe
            self._retired.append(zygote)
            self._zygote = None
            self._end_retired()
        return self._zygote is not None

    def _zygotes(self) -> list[Zygote]:
        return [*self._retired, *([] if self._zygote is None else [self._zygote])]

    def _sweep(self) -> None:
        """Kill what a zygote that died has left to this process."""
        if self._subreaper and not self._starting.locked():  # else done once the new one is known
            processes.kill_descendants(frozenset(zygote.pid for zygote in self._zygotes() if zygote.alive))

    def preimport(self, modules: object) -> bool:
        """Have later guests begin with these modules imported: what an app turned out to need from outside its FAB.

        False when all of them are known already. A guest names them, so they may be anything; where it is no list of
        names or there are thousands already, it is left out.
        """
        if not isinstance(modules, list) or len(modules) + len(self._known) > _MODULES:
            return False
        names = [name for name in modules if isinstance(name, str)]
        new = [name for name in names if name not in self._known and name not in self._never]
        self._known.update(dict.fromkeys(new))
        if new and self._zygote is not None:
            self._zygote.preimport(new)
        return bool(new)

    async def release(self, guest: Guest, *, patience: float = END_SECONDS) -> int | None:
        """End a guest and all it started; its exit code, or None when it had to be killed after `patience` seconds."""
        code = await guest.zygote.release(guest, patience)
        self._end_retired()
        return code

    def _end_retired(self) -> None:
        for zygote in [zygote for zygote in self._retired if not zygote.guests]:
            self._retired.remove(zygote)
            zygote.stop()

    async def stop(self) -> None:
        """End every zygote and everything below."""
        for zygote in self._zygotes():
            zygote.stop()
        self._zygote = None
        self._retired.clear()
        if self._subreaper:
            await asyncio.to_thread(processes.kill_descendants)


def guest_work(**values: Any) -> dict[str, Any]:
    """The header that gives a guest its work; flwr's task ids are only needed to be set (Flower 1.38 on)."""
    return {"op": "work", "task_id": values["run_id"], **values}
