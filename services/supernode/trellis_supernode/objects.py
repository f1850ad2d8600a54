"""The objects of each run on this node: small ones in memory and in the ledger, large ones in files.

An object is here as soon as it is verified: it can be handed on while its file is still on its way to the disk. It is
kept once its file and folder are synced. One that is expected can be waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trellis_wire.bulk import Part
from trellis_wire.objects import Buffer, ObjectError, PartVerifier, Tree, verify_object

_log = logging.getLogger(__name__)

SMALL: Final = 64 * 1024
"""Bytes of an object up to which it is kept in the ledger."""
_PARTIAL: Final = ".part"


class NotComing(Exception):
    """An object is not here, and nobody brings it now."""


@dataclass
class _File:
    """A large object. `settling` None: it is kept; else its file is on its way to the disk and to its own name."""

    path: Path
    size: int
    settling: asyncio.Task[None] | None = None


@dataclass
class _Expected:
    """An object on its way, and by how many ways."""

    arrived: asyncio.Future[None]
    ways: int = 0


class ObjectStore:
    """Knows which objects are here.

    What small objects the ledger keeps is the caller's to see to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._small: dict[int, dict[str, bytes]] = {}
        self._large: dict[int, dict[str, _File]] = {}
        self._expected: dict[tuple[int, str], _Expected] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="sync")  # one after the other: a disk has one head

    def open(self) -> None:
        """Finds the files of an earlier life; what was not kept is removed."""
        self._root.mkdir(parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            if not folder.name.isdigit():
                continue
            for path in folder.iterdir():
                if path.suffix == _PARTIAL:
                    path.unlink()
                else:
                    self._large.setdefault(int(folder.name), {})[path.name] = _File(path, path.stat().st_size)

    async def close(self) -> None:
        """Waits for the disk."""
        if self._settling:
            await asyncio.wait(self._settling)
        await asyncio.to_thread(self._disk.shutdown)

    @property
    def runs(self) -> set[int]:
        """The runs that have objects here."""
        return self._small.keys() | self._large.keys()

    def has(self, run_id: int, object_id: str) -> bool:
        return object_id in self._small.get(run_id, {}) or object_id in self._large.get(run_id, {})

    def missing(self, run_id: int, *trees: Tree) -> list[str]:
        """The objects of the trees that are not here, each once, children first."""
        wanted = dict.fromkeys(object_id for tree in trees for object_id in tree.post_order())
        return [object_id for object_id in wanted if not self.has(run_id, object_id)]

    def size(self, run_id: int, object_id: str) -> int:
        """Bytes; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        return self._large.get(run_id, {})[object_id].size if small is None else len(small)

    # ---- what is on its way --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def expecting(self, run_id: int, object_ids: Iterable[str]) -> Iterator[None]:
        """While this lasts the objects can be waited for: somebody is bringing them."""
        keys = [(run_id, object_id) for object_id in object_ids]
        for key in keys:
            expected = self._expected.get(key)
            if expected is None:
                expected = self._expected[key] = _Expected(asyncio.get_running_loop().create_future())
            expected.ways += 1
        try:
            yield
        finally:
            for key in keys:
                expected = self._expected[key]
                expected.ways -= 1
                if not expected.ways:
                    del self._expected[key]
                    if not expected.arrived.done():
                        expected.arrived.cancel()

    async def arrival(self, run_id: int, object_id: str) -> None:
        """Returns once the object is here. NotComing."""
        if self.has(run_id, object_id):
            return
        expected = self._expected.get((run_id, object_id))
        if expected is None:
            raise NotComing
        await asyncio.wait([expected.arrived])
        if not self.has(run_id, object_id):
            raise NotComing

    def _arrived(self, run_id: int, object_id: str) -> None:
        expected = self._expected.get((run_id, object_id))
        if expected is not None and not expected.arrived.done():
            expected.arrived.set_result(None)

    # ---- taking in -----------------------------------------------------------------------------------------

    def add_small(self, run_id: int, objects: Mapping[str, bytes]) -> None:
        """Verified objects, into memory."""
        if objects:
            self._small.setdefault(run_id, {}).update(objects)
            for object_id in objects:
                self._arrived(run_id, object_id)

    def small_of(self, run_id: int, *trees: Tree) -> dict[str, bytes]:
        """The small objects of the trees that are here, the roots first."""
        known = self._small.get(run_id, {})
        wanted = (object_id for tree in trees for object_id in reversed(tree.post_order()))
        return {object_id: known[object_id] for object_id in wanted if object_id in known}

    async def put(self, run_id: int, object_id: str, content: Buffer) -> None:
        """Verifies and takes a whole object. ObjectError, OSError."""
        if len(content) <= SMALL:
            verify_object(object_id, content)
            self.add_small(run_id, {object_id: bytes(content)})
            return
        writer = Writer(self, run_id, object_id, len(content))
        try:
            await writer.add(0, content)
            writer.finish()
        finally:
            writer.close()

    def inflow(self, run_id: int) -> Inflow:
        """Takes new objects in parts."""
        return Inflow(self, run_id)

    def _take_file(self, run_id: int, object_id: str, path: Path, size: int) -> None:
        """A verified file is the object from now on; the disk follows."""
        file = _File(path, size)
        before = self._large.setdefault(run_id, {}).get(object_id)
        if before is not None:  # it came twice at the same time
            before.path.unlink(missing_ok=True)
        self._large[run_id][object_id] = file
        file.settling = asyncio.create_task(self._settle(run_id, object_id, file))
        self._settling.add(file.settling)
        file.settling.add_done_callback(self._settled)
        self._arrived(run_id, object_id)

    async def _settle(self, run_id: int, object_id: str, file: _File) -> None:
        """The file gets its own name, once its bytes are on the disk."""
        try:
            await self._in_thread(_sync, file.path)
        except OSError:
            if self._is(run_id, object_id, file):  # not here after all: it has to come again
                del self._large[run_id][object_id]
                file.path.unlink(missing_ok=True)
            raise
        if self._is(run_id, object_id, file):
            file.path = file.path.rename(self._path(run_id, object_id))

    def _is(self, run_id: int, object_id: str, file: _File) -> bool:
        """Whether it was not let go of meanwhile."""
        return self._large.get(run_id, {}).get(object_id) is file

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("An object could not be kept: %s", error)

    async def keep(self, run_id: int, *trees: Tree) -> None:
        """Returns once the objects of the trees are kept, as far as they are here. OSError."""
        known = self._large.get(run_id, {})
        wanted = dict.fromkeys(object_id for tree in trees for object_id in tree.post_order())
        files = [known[object_id] for object_id in wanted if object_id in known]
        files = [file for file in files if file.settling is not None]
        for file in files:
            if file.settling is not None:
                await asyncio.shield(file.settling)
        if files:
            with contextlib.suppress(FileNotFoundError):  # the run was forgotten meanwhile
                await self._in_thread(sync_folder, self._root / str(run_id))
            for file in files:
                file.settling = None

    def _in_thread(self, work: Callable[[Path], None], path: Path) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._disk, work, path)

    # ---- handing out ---------------------------------------------------------------------------------------

    async def read(self, run_id: int, object_id: str) -> bytes:
        """A whole object; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        if small is not None:
            return small
        with self._large.get(run_id, {})[object_id].path.open("rb", buffering=0) as file:
            return await asyncio.to_thread(file.readall)

    async def parts(self, run_id: int, object_id: str, size: int) -> AsyncIterator[Part]:
        """An object in parts of `size` bytes, waited for where it is on its way. NotComing."""
        await self.arrival(run_id, object_id)
        small = self._small.get(run_id, {}).get(object_id)
        if small is not None:
            for start in range(0, len(small), size):
                yield Part(object_id, start, len(small), memoryview(small)[start : start + size])
            return
        found = self._large[run_id][object_id]
        offset = 0
        with found.path.open("rb", buffering=0) as file:
            while data := await asyncio.to_thread(file.read, size):
                yield Part(object_id, offset, found.size, memoryview(data))
                offset += len(data)

    # ---- letting go ----------------------------------------------------------------------------------------

    def keep_only(self, run_id: int, wanted: set[str]) -> list[str]:
        """Drop what is not wanted; the ids of the small ones, for the ledger."""
        large = self._large.get(run_id, {})
        for object_id in [one for one in large if one not in wanted]:
            large.pop(object_id).path.unlink(missing_ok=True)
        small = self._small.get(run_id, {})
        dropped = [one for one in small if one not in wanted]
        for object_id in dropped:
            del small[object_id]
        return dropped

    def forget(self, run_id: int) -> None:
        """Drop everything of a run."""
        self._small.pop(run_id, None)
        self._large.pop(run_id, None)
        shutil.rmtree(self._root / str(run_id), ignore_errors=True)

    def _path(self, run_id: int, object_id: str) -> Path:
        return self._root / str(run_id) / object_id

    def _create(self, run_id: int, object_id: str) -> tuple[Path, int]:
        folder = self._root / str(run_id)
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._root)
        path = folder / f"{object_id}.{os.urandom(4).hex()}{_PARTIAL}"
        return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


class Inflow:
    """Objects that come in parts, one after the other: `add` each part, then `finish`; `close` in any case.

    While a part is hashed and written by a thread, the next one can be received.
    """

    def __init__(self, store: ObjectStore, run_id: int) -> None:
        self._store = store
        self._run_id = run_id
        self._writer: Writer | None = None
        self._busy: asyncio.Task[None] | None = None
        self.arrived: list[str] = []

    async def add(self, part: Part) -> None:
        """Takes the next part once the one before is through. ObjectError, OSError: of this part or the one before."""
        await self._settle()
        if self._writer is None:
            self._writer = Writer(self._store, self._run_id, part.object_id, part.size)
        if part.object_id != self._writer.object_id:
            raise ObjectError("An object's parts were followed by another object's before it was whole.")
        if self._writer.size != part.size:
            raise ObjectError(f"The parts of object {part.object_id[:16]} do not agree on its size.")
        self._busy = asyncio.create_task(self._take(self._writer, part))

    async def _take(self, writer: Writer, part: Part) -> None:
        await writer.add(part.offset, part.data)
        if writer.complete:
            writer.finish()
            writer.close()
            self.arrived.append(writer.object_id)
            self._writer = None

    async def _settle(self) -> None:
        busy, self._busy = self._busy, None
        if busy is not None:
            await busy

    async def finish(self) -> list[str]:
        """Waits for the last part; the objects that are here now. An incomplete one is forgotten."""
        await self._settle()
        return self.arrived

    async def close(self) -> None:
        """Forget what came of an object that is not whole."""
        if self._busy is not None:
            await asyncio.wait([self._busy])
            self._busy.exception()  # looked at: the caller has its own reason to end
        if self._writer is not None:
            self._writer.close()


class Writer:
    """One object on its way in: `add` its parts, then `finish`; `close` in any case. A thread does the work."""

    def __init__(self, store: ObjectStore, run_id: int, object_id: str, size: int) -> None:
        self._store = store
        self._run_id = run_id
        self.object_id = object_id
        self.size = size
        self._verifier = PartVerifier(object_id, size)
        self._memory: bytearray | None = bytearray() if size <= SMALL else None
        self._path: Path | None = None
        self._fd = -1

    @property
    def complete(self) -> bool:
        return self._verifier.received == self._verifier.size

    async def add(self, offset: int, data: Buffer) -> None:
        """The next part. ObjectError when it does not follow the one before or the object cannot be right; OSError."""
        if offset != self._verifier.received:
            raise ObjectError(f"The parts of object {self.object_id[:16]} do not follow each other.")
        if self._memory is not None:
            self._verifier.feed(data)
            self._memory += data
        else:
            await asyncio.to_thread(self._write, data)

    def _write(self, data: Buffer) -> None:
        self._verifier.feed(data)
        if self._path is None:
            self._path, self._fd = self._store._create(self._run_id, self.object_id)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self) -> None:
        """Verified and in the store. ObjectError."""
        self._verifier.finish()
        if self._memory is not None:
            self._store.add_small(self._run_id, {self.object_id: bytes(self._memory)})
            return
        assert self._path is not None
        path, self._path = self._path, None
        self._store._take_file(self._run_id, self.object_id, path, self.size)

    def close(self) -> None:
        """Forget what came, if it was not finished."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def verified(objects: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """Objects that came inside a message. ObjectError for one that is not what it says."""
    found = dict(objects)
    for object_id, content in found.items():
        verify_object(object_id, content)
    return found


def _sync(path: Path) -> None:
    """The file's bytes are on the disk; nothing to do where it is gone already."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """What was renamed into the folder stays there, whatever happens to the machine."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
