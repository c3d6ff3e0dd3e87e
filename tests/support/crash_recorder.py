"""Notes every call that changes files below one folder, in the calls' order, and what each sync covered.

It stands in for the calls of `os`, for opening files to write, and for the hole punching of `secondsite.durable`. A write
that goes around it is noticed: at every sync, and at the end, what it noted is compared with what is there (`UnrecordedError`).
Syncs are noted and not carried out. Calls that it does not know are refused, never let through unseen.

It can also kill: the chosen call does not happen, nor does any after it, until `revive`. One thread at a time.
"""

from __future__ import annotations

import builtins
import fcntl
import io
import itertools
import os
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from secondsite import durable
from support.crash_disk import Disk, Effect, Entry, Names, Punch, Resize, Sync, Write
from support.power import PowerCutError

_PUNCH_KEEPING_SIZE: Final = 0x03
_REFUSED: Final = (
    "writev",
    "pwritev",
    "sendfile",
    "truncate",
    "symlink",
    "posix_fallocate",
    "sync",
    "mkfifo",
    "mknod",
    "renames",
    "splice",
)


class UnrecordedError(AssertionError):
    """Something changed a file without being seen."""


class Recorder:
    """See the module's docstring. `log` is what happened since the start, `start` what was there (all durable)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start, self._numbers = Disk.of(root)
        self.live = self.start.copy()
        self.log: list[Entry] = []
        self.calls = 0
        self.kill_at: int | None = None
        self.dead = False
        self._os = {name: getattr(os, name) for name in dir(os)}
        self._opened = io.open

    # -- what is noted ---------------------------------------------------------------------------------

    def call(self) -> None:
        """A call that changes something begins. Raises PowerCutError if it is not to happen."""
        if self.dead or self.calls == self.kill_at:
            self.dead = True
            raise PowerCutError
        self.calls += 1

    def revive(self) -> None:
        """A new process begins; nothing was lost but what the old one had not given to the system."""
        self.dead, self.kill_at = False, None

    def note(self, *effects: Effect) -> None:
        for effect in effects:
            self.live.apply(effect)
            self.log.append(effect)

    def synced(self, inode: int) -> None:
        self.compare()
        self.log.append(Sync(inode))

    def compare(self) -> None:
        """Raise UnrecordedError unless what is there is what was noted."""
        noted = self.live.tree()
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if name not in noted:
                raise UnrecordedError(f"{name} came into being unseen")
            expected = noted.pop(name)
            if expected is not None and path.read_bytes() != expected:
                raise UnrecordedError(f"{name} was written unseen")
        if noted:
            raise UnrecordedError(f"{min(noted)} went away unseen")

    # -- who is who ------------------------------------------------------------------------------------

    def inode_of(self, fd: int) -> int | None:
        """Our number of an open file; None if it is not below the root."""
        status = os.fstat(fd)
        return self._numbers.get((status.st_dev, status.st_ino))

    def place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """The folder's number and the name in it; None if that is not below the root."""
        text = os.fsdecode(path)
        parent, name = os.path.split(text.rstrip("/"))
        try:
            status = os.stat(parent or ".", dir_fd=dir_fd)
        except FileNotFoundError:
            return None
        folder = self._numbers.get((status.st_dev, status.st_ino))
        return None if folder is None else (folder, name)

    def named(self, place: tuple[int, str]) -> int | None:
        return self.live.folders[place[0]].get(place[1])

    def appeared(self, place: tuple[int, str], path: Any, dir_fd: int | None, *, folder: bool) -> None:
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        inode = self.live.new_folder() if folder else self.live.new_file()
        self._numbers[status.st_dev, status.st_ino] = inode
        self.note(Names(place[0], ((place[1], inode),)))

    # -- the calls -------------------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self.place(path, dir_fd)
        if place is None or not flags & (os.O_CREAT | os.O_TRUNC):
            return int(self._os["open"](path, flags, mode, dir_fd=dir_fd))
        known = self.named(place)
        if known is None or flags & os.O_TRUNC:
            self.call()
        fd = int(self._os["open"](path, flags, mode, dir_fd=dir_fd))
        if known is None:
            self.appeared(place, path, dir_fd, folder=False)
        elif flags & os.O_TRUNC:
            self.note(Resize(known, 0))
        return fd

    def write(self, fd: int, data: Any) -> int:
        if self.inode_of(fd) is None:
            return int(self._os["write"](fd, data))
        return self.pwrite(fd, data, os.lseek(fd, 0, os.SEEK_CUR), positioned=False)

    def pwrite(self, fd: int, data: Any, offset: int, *, positioned: bool = True) -> int:
        inode = self.inode_of(fd)
        if inode is None:
            return int(self._os["pwrite"](fd, data, offset))
        self.call()
        done = self._os["pwrite"](fd, data, offset) if positioned else self._os["write"](fd, data)
        self.note(Write(inode, offset, bytes(memoryview(data).cast("B")[:done])))
        return int(done)

    def ftruncate(self, fd: int, size: int) -> None:
        inode = self.inode_of(fd)
        if inode is not None:
            if os.fstat(fd).st_size == size:
                return
            self.call()
        self._os["ftruncate"](fd, size)
        if inode is not None:
            self.note(Resize(inode, size))

    def copy_file_range(self, source: int, target: int, count: int, at: int, to: int) -> int:
        inode = self.inode_of(target)
        if inode is not None:
            self.call()
        done = int(self._os["copy_file_range"](source, target, count, at, to))
        if inode is not None and done:
            self.note(
                Write(
                    inode, to, os.pread(target, done, to) if _readable(target) else os.pread(source, done, at)
                )
            )
        return done

    def fallocate(self, function: Callable[..., int], fd: int, mode: int, offset: int, length: int) -> int:
        inode = self.inode_of(fd)
        if inode is None:
            return function(fd, mode, offset, length)
        if mode != _PUNCH_KEEPING_SIZE:
            raise UnrecordedError(f"fallocate with mode {mode} is not known here")
        self.call()
        done = function(fd, mode, offset, length)
        if done == 0:
            self.note(Punch(inode, offset, length))
        return done

    def sync(self, fd: int) -> None:
        inode = self.inode_of(fd)
        if inode is not None:
            self.call()
            self.synced(inode)

    def rename(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        was, becomes = self.place(source, src_dir_fd), self.place(target, dst_dir_fd)
        if was is None and becomes is None:
            self._os["replace"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            return
        if was is None or becomes is None:
            raise UnrecordedError(f"{source} is renamed across the border of what is recorded")
        self.call()
        inode = self.named(was)
        self._os["replace"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        if was[0] == becomes[0]:
            self.note(Names(was[0], ((was[1], None), (becomes[1], inode))))
        else:
            self.note(Names(becomes[0], ((becomes[1], inode),)), Names(was[0], ((was[1], None),)))

    def link(self, source: Any, target: Any, **options: Any) -> None:
        was, becomes = self.place(source), self.place(target)
        if was is None and becomes is None:
            self._os["link"](source, target, **options)
            return
        if was is None or becomes is None or options:
            raise UnrecordedError(f"{source} is linked in a way that is not recorded")
        self.call()
        self._os["link"](source, target)
        self.note(Names(becomes[0], ((becomes[1], self.named(was)),)))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._gone("unlink", path, dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._gone("rmdir", path, dir_fd)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self.place(path, dir_fd)
        if place is not None:
            self.call()
        self._os["mkdir"](path, mode, dir_fd=dir_fd)
        if place is not None:
            self.appeared(place, path, dir_fd, folder=True)

    def opened(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        """In the place of `open`: a file to be written is one that tells us."""
        if isinstance(file, int) or not set(mode) & set("wxa+") or self.place(file) is None:
            return self._opened(file, mode, buffering, *rest, **options)
        raw = _RecordedFile(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **options)

    def _gone(self, what: str, path: Any, dir_fd: int | None) -> None:
        place = self.place(path, dir_fd)
        known = None if place is None else self.named(place)
        if known is not None:
            self.call()
        self._os[what](path, dir_fd=dir_fd)
        if place is not None and known is not None:
            self.note(Names(place[0], ((place[1], None),)))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Stand in for the system's calls; random names are the same in every run."""
        tokens = itertools.count(1)
        with pytest.MonkeyPatch.context() as patch:
            for name in (
                "open",
                "write",
                "pwrite",
                "ftruncate",
                "copy_file_range",
                "link",
                "unlink",
                "rmdir",
                "mkdir",
            ):
                patch.setattr(os, name, getattr(self, name))
            patch.setattr(os, "remove", self.unlink)
            for name in ("rename", "replace"):
                patch.setattr(os, name, self.rename)
            for name in ("fsync", "fdatasync"):
                patch.setattr(os, name, self.sync)
            for name in _REFUSED:
                patch.setattr(os, name, _refuse(name))
            patch.setattr(io, "open", self.opened)
            patch.setattr(builtins, "open", self.opened)
            patch.setattr(durable, "_libc", _Libc(self, durable._libc))
            patch.setattr(secrets, "token_hex", lambda size: f"{next(tokens):0{2 * size}x}")
            patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(tokens)))
            yield
            if not self.dead:
                self.compare()


class _RecordedFile(io.FileIO):
    """A file that tells what is written to it."""

    def __init__(self, recorder: Recorder, path: Any, mode: str) -> None:
        self._recorder = recorder
        super().__init__(path, mode, opener=lambda name, flags: recorder.open(name, flags, 0o666))

    def write(self, data: Any) -> int:
        if self._recorder.dead:  # what a dead process still holds in its buffers goes nowhere
            return len(memoryview(data).cast("B"))
        inode = self._recorder.inode_of(self.fileno())
        assert inode is not None
        self._recorder.call()
        at = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
        done = super().write(data) or 0
        self._recorder.note(Write(inode, at, bytes(memoryview(data).cast("B")[:done])))
        return done

    def truncate(self, size: int | None = None) -> int:
        inode = self._recorder.inode_of(self.fileno())
        assert inode is not None
        self._recorder.call()
        done = super().truncate(size)
        self._recorder.note(Resize(inode, done))
        return done


class _Libc:
    """Stands in for the one library call of `durable`."""

    def __init__(self, recorder: Recorder, libc: Any) -> None:
        self._recorder = recorder
        self._libc = libc

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> int:
        return self._recorder.fallocate(self._libc.fallocate, fd, mode, offset, length)


def _readable(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY


def _refuse(name: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise UnrecordedError(f"os.{name} is not recorded")

    return call
