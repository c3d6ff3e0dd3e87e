"""The disk under one site's folder: which writes a power cut loses, tears or keeps, and calls that fail.

The product's files lie in a real folder. Every call that changes a file or a folder is a step; the disk notes what each
fsync made durable, and can end the process before any step. A new process then finds:

- after `kill`: all that was done, and what was not synced is not synced still.
- after `cut_power`: what was synced is there. Of the rest each file, each name, each 512-byte or 4 KiB unit may be there or not:
  names in any order, but a rename never loses a file that had a durable name; a file's size may be ahead of its data.

Faults: no space (calls that need room), an error of a write, a read or a sync. After an error of a sync the kernel has
dropped what it could not write: later syncs say yes, and only what was written again since then is durable.

Not here: a disk that lies about syncs. Images of machines (*.qcow2) are the hypervisor's and always as they are.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from support.power import PowerCutError
from support.simulator.aftermath import REAL_SCANDIR, SECTOR, Aftermath

_ROOM: Final = {
    "open",
    "write",
    "pwrite",
    "mkdir",
    "link",
    "posix_fallocate",
    "file write",
    "copy_file_range",
}
STEPS: Final = (
    "open",
    "write",
    "pwrite",
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "unlink",
    "link",
    "mkdir",
    "rmdir",
    "ftruncate",
    "posix_fallocate",
    "copy_file_range",
)
READS: Final = ("pread", "preadv")


@dataclass(slots=True)
class DiskPlan:
    """What goes wrong with a disk while one step of the story runs; counted from its begin. None: never."""

    cut_at: int | None = None
    full_from: int | None = None
    full_for: int = 0
    error_at: int | None = None
    read_error_at: int | None = None


class Life:
    """One process on the disk; once ended, nothing that it still does reaches a file."""

    def __init__(self) -> None:
        self.ended = False
        self._locked: dict[int, tuple[int, int]] = {}

    def locked(self, fd: int) -> None:
        """The process has taken a lock on this descriptor."""
        status = os.fstat(fd)
        self._locked[fd] = (status.st_dev, status.st_ino)

    def unlock(self) -> None:
        """The process has ended, and with it its locks."""
        self.ended = True
        for fd, file in self._locked.items():
            try:
                status = os.fstat(fd)
            except OSError:
                continue
            if (status.st_dev, status.st_ino) == file:
                REAL_FLOCK(fd, fcntl.LOCK_UN)


class SimDisk:
    """See the module's docstring. `root` is the site's folder."""

    def __init__(self, root: Path, chance: Random) -> None:
        self.root = root
        self.chance = chance
        self.plan = DiskPlan()
        self.steps = 0
        self.reads = 0
        self.life = Life()
        self.failed: list[str] = []
        """The faults that came about, for the story."""
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._dropped: dict[int, dict[int, bytes]] = {}
        self._held: dict[int, int] = {}
        self.note_all()

    # -- steps ---------------------------------------------------------------------------------------------

    def begin(self, plan: DiskPlan) -> None:
        """A step of the story begins."""
        self.plan, self.steps, self.reads = plan, 0, 0

    def call(self, name: str, real: Callable[..., Any], args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        """Do one call of the process, or not."""
        if name in READS:
            return self._read(real, args, fields)
        if name == "open" and not (len(args) > 1 and args[1] & os.O_CREAT):
            return real(*args, **fields)
        self.step(name)
        if "sync" in name:
            return self._sync(args[0])
        if name == "pwrite":
            self._rewritten(args[0], int(args[2]), len(memoryview(args[1]).cast("B")))
        return real(*args, **fields)

    def step(self, name: str) -> None:
        """Count a step; raise if the process ends here or the call fails."""
        if self.life.ended:
            raise PowerCutError
        at, plan = self.steps, self.plan
        self.steps += 1
        if at == plan.cut_at:
            self.life.ended = True
            raise PowerCutError
        if (
            plan.full_from is not None
            and plan.full_from <= at < plan.full_from + plan.full_for
            and name in _ROOM
        ):
            self.failed.append(f"no space in {name}")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if at == plan.error_at and "sync" not in name:
            self.failed.append(f"error of {name}")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _read(self, real: Callable[..., Any], args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        if self.life.ended:
            raise PowerCutError
        self.reads += 1
        if self.reads - 1 == self.plan.read_error_at:
            self.failed.append("error of a read")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **fields)

    # -- what is durable -----------------------------------------------------------------------------------

    def _sync(self, fd: int) -> None:
        status = os.fstat(fd)
        failing = self.steps - 1 == self.plan.error_at
        if failing:
            self.failed.append("error of a sync")
        if stat.S_ISDIR(status.st_mode):
            if not failing:
                self._note_folder(fd, status.st_ino)
        elif failing:
            self._drop(fd, status.st_ino)
        else:
            self._note_file(fd, status.st_ino)
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def note_all(self) -> None:
        """All that is there now is durable."""
        self._forget()
        for folder, _, files in os.walk(self.root):
            self._note_path(Path(folder), self._note_folder)
            for name in files:
                path = Path(folder, name)
                if not path.is_symlink():
                    self._note_path(path, self._note_file)

    def note_durable(self, path: Path) -> None:
        """A file that the world outside has put here is durable, with its name."""
        self._note_path(path, self._note_file)
        self._note_path(path.parent, self._note_folder)

    def _note_path(self, path: Path, note: Callable[[int, int], None]) -> None:
        fd = REAL_OPEN(path, os.O_RDONLY)
        try:
            note(fd, os.fstat(fd).st_ino)
        finally:
            os.close(fd)

    def _note_folder(self, fd: int, inode: int) -> None:
        self._hold(fd, inode)
        with REAL_SCANDIR(fd) as entries:
            self._names[inode] = {entry.name: entry.inode() for entry in entries}

    def _note_file(self, fd: int, inode: int) -> None:
        self._hold(fd, inode)
        self._contents[inode] = self._reaching(inode, _contents_of(fd))

    def _reaching(self, inode: int, data: bytes) -> bytes:
        """Return what of a file's contents the kernel still writes: what a failed sync dropped was not, unless written again."""
        result, before = bytearray(data), self._contents.get(inode, b"")
        for at, dropped in self._dropped.get(inode, {}).items():
            if result[at : at + SECTOR] == dropped:
                result[at : at + SECTOR] = before[at : at + SECTOR].ljust(len(dropped), b"\0")
        return bytes(result)

    def _drop(self, fd: int, inode: int) -> None:
        data, before = _contents_of(fd), self._contents.get(inode, b"")
        dropped = self._dropped.setdefault(inode, {})
        for at in range(0, len(data), SECTOR):
            if data[at : at + SECTOR] != before[at : at + SECTOR]:
                dropped[at] = data[at : at + SECTOR]

    def _rewritten(self, fd: int, offset: int, length: int) -> None:
        dropped = self._dropped.get(os.fstat(fd).st_ino)
        if dropped:
            first, last = offset // 4096 * 4096, -(-(offset + length) // 4096) * 4096
            for at in range(first, last, SECTOR):
                dropped.pop(at, None)

    def _hold(self, fd: int, inode: int) -> None:
        if inode not in self._held:
            self._held[inode] = os.dup(fd)  # so that its number is not used again

    def release_gone(self) -> None:
        """Let go of files that neither have a name nor had one that is durable."""
        durable = {inode for names in self._names.values() for inode in names.values()}
        for inode, fd in list(self._held.items()):
            if inode not in durable and os.fstat(fd).st_nlink == 0:
                os.close(self._held.pop(inode))
                for known in (self._contents, self._names, self._dropped):
                    known.pop(inode, None)

    def _forget(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held, self._contents, self._names, self._dropped = {}, {}, {}, {}

    def close(self) -> None:
        self._forget()

    # -- afterwards ----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """The process ended, the system lives: all is there, nothing of it is locked any more."""
        self.life.unlock()
        self.life = Life()

    def cut_power(self) -> None:
        """The system ended: leave in `root` what a disk may hold."""
        self.life.unlock()
        following = self.root.with_name(self.root.name + ".next")
        Aftermath(self.root, self._names, self._contents, self._reaching, self.chance).build(following)
        gone = self.root.with_name(self.root.name + ".gone")
        self.root.rename(gone)
        following.rename(self.root)
        shutil.rmtree(gone)
        self.note_all()
        self.life = Life()


def _contents_of(fd: int) -> bytes:
    return Path(f"/proc/self/fd/{fd}").read_bytes()


# -- the calls that go through the disk that is active ---------------------------------------------------------

REAL_OPEN = os.open
REAL_FLOCK = fcntl.flock


class Disks:
    """Which disk the running code is on. None: the world outside, whose files are nobody's steps."""

    def __init__(self) -> None:
        self.active: SimDisk | None = None

    @contextmanager
    def on(self, disk: SimDisk | None) -> Iterator[None]:
        """Run the enclosed code on this disk."""
        before, self.active = self.active, disk
        try:
            yield
        finally:
            self.active = before

    def through(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call `name` as the running code sees it."""

        def call(*args: Any, **fields: Any) -> Any:
            disk = self.active
            return real(*args, **fields) if disk is None else disk.call(name, real, args, fields)

        return call

    def locking(self, fd: int, operation: int) -> None:
        """`fcntl.flock`: what a process has locked is free when it ends."""
        REAL_FLOCK(fd, operation)
        if self.active is not None:
            self.active.life.locked(fd)

    def opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return `Path.open`, whose files for writing are steps too."""

        def call(path: Path, mode: str = "r", buffering: int = -1, *args: Any, **fields: Any) -> Any:
            disk = self.active
            if disk is None or "b" not in mode or not set(mode) & {"x", "w", "a"}:
                return real(path, mode, buffering, *args, **fields)
            disk.step("open")
            raw = _SteppedFile(path, mode, disk)
            return raw if buffering == 0 else io.BufferedWriter(raw, buffering if buffering > 0 else 8192)

        return call


class _SteppedFile(io.FileIO):
    """A file that the product writes by itself. What a dead process still has in its buffers goes nowhere."""

    def __init__(self, path: Path, mode: str, disk: SimDisk) -> None:
        super().__init__(path, mode)
        self._disk = disk
        self._life = disk.life

    def write(self, data: Any) -> int:
        if self._life.ended:
            return len(memoryview(data).cast("B"))
        self._disk.step("file write")
        return super().write(data)


class SortedScan:
    """`os.scandir` in the order of names: a file system's own order must not decide a story."""

    def __init__(self, *args: Any) -> None:
        with REAL_SCANDIR(*args) as entries:
            self._entries = iter(sorted(entries, key=lambda entry: entry.name))

    def __iter__(self) -> SortedScan:
        return self

    def __next__(self) -> os.DirEntry[Any]:
        return next(self._entries)

    def __enter__(self) -> SortedScan:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def close(self) -> None:
        """Nothing is open."""
