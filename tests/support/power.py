"""Cuts the power at any step of an operation on files, and builds what a disk may hold afterwards.

Every call that changes a folder or a file is a step. At the chosen step the call does not happen, and neither does any
after it. Meanwhile every fsync is noted with what it made durable, so that states of a real cut can be built:

- killed: the process died, the system lives: all that was done is there.
- cut: only what was synced is there; a name only if its folder was synced.
- names: names are there, but contents only as far as they were synced (a journalling file system may do so).
- raw / tables: as cut, but bases or digest tables were written back by chance.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from blake3 import blake3

from secondsite import durable
from secondsite.blocks import DigestTable

AFTERMATHS: Final = ("killed", "cut", "names", "raw", "tables")
_STEPS: Final = [
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
]


class PowerCutError(BaseException):
    """Not an Exception: nothing may handle it."""


class Power:
    """Counts the steps below `root`, and cuts at step `cut_at` if that is given."""

    def __init__(self, root: Path, cut_at: int | None) -> None:
        self.root = root
        self.steps = 0
        self._cut_at = cut_at
        self._dead = False
        self._held: list[int] = []  # keeps inodes from being used again
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for folder, _, files in os.walk(root):
            self._note_folder(os.open(folder, os.O_RDONLY))
            for name in files:
                self._note_file(os.open(Path(folder, name), os.O_RDONLY))
        self._note_folder(os.open(root.parent, os.O_RDONLY))

    def step(self) -> None:
        if self._dead or self.steps == self._cut_at:
            self._dead = True
            raise PowerCutError
        self.steps += 1

    def synced(self, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self._note_folder(os.dup(fd))
        else:
            self._note_file(os.dup(fd))

    def aftermath(self, kind: str, target: Path) -> Path:
        """Build a state after the cut in `target`; return the root in it."""
        target.mkdir()
        if kind == "killed":
            for entry in self.root.parent.iterdir():
                copy = shutil.copytree if entry.is_dir() else shutil.copyfile
                copy(entry, target / entry.name)
        else:
            self._build(self.root.parent, target, kind)
        return target / self.root.name

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)

    def _build(self, folder: Path, target: Path, kind: str, inode: int | None = None) -> None:
        """Build what was the folder `inode`, now at `folder` if it is anywhere."""
        names = self._names.get(folder.stat().st_ino if inode is None else inode, {})
        if kind == "names" and folder.is_dir():
            names = {entry.name: entry.stat().st_ino for entry in folder.iterdir()}
        for name, known in names.items():
            source = folder / name
            if known in self._names or source.is_dir():
                (target / name).mkdir()
                self._build(source, target / name, kind, known)
            elif source.exists() and self._kept(name, kind) and source.stat().st_ino == known:
                shutil.copyfile(source, target / name)
            else:
                (target / name).write_bytes(self._contents.get(known, b""))

    @staticmethod
    def _kept(name: str, kind: str) -> bool:
        return (kind == "raw" and name.endswith(".raw")) or (kind == "tables" and name.endswith(".tbl"))

    def _note_folder(self, fd: int) -> None:
        self._held.append(fd)
        with os.scandir(fd) as entries:
            self._names[os.fstat(fd).st_ino] = {entry.name: entry.inode() for entry in entries}

    def _note_file(self, fd: int) -> None:
        self._held.append(fd)
        self._contents[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()


@contextmanager
def power(root: Path, cut_at: int | None) -> Iterator[Power]:
    """Let operations on files below `root`'s parent run under a `Power`. Nothing is really synced meanwhile."""
    supply = Power(root, cut_at)
    with pytest.MonkeyPatch.context() as patch:

        def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                supply.step()
                return function(*args, **kwargs)

            return call

        def sync(fd: int) -> None:
            supply.step()
            supply.synced(fd)

        for name in _STEPS:
            patch.setattr(os, name, sync if "sync" in name else stepping(getattr(os, name)))
        for owner, names in ((durable, ["punch_hole"]), (DigestTable, ["put", "fill_zero", "mark_unknown"])):
            for name in names:
                patch.setattr(owner, name, stepping(getattr(owner, name)))
        yield supply


@contextmanager
def unsynced() -> Iterator[None]:
    """Skip real syncs, which cost most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


def fingerprint(root: Path) -> bytes:
    """Return what tells two states apart; the random ends of temporary names do not."""
    hasher = blake3()
    found = sorted(
        (str(path.relative_to(root)).partition(durable.TEMPORARY_MARK)[0], path)
        for path in root.rglob("*")
        if path.is_file()
    )
    for name, path in found:
        data = path.read_bytes()
        hasher.update(f"{name} {durable.TEMPORARY_MARK in path.name} {len(data)}\0".encode() + data)
    return hasher.digest()
