"""What a disk was told, call by call: the files and folders below one root, and which of it is durable.

A call becomes one or two effects, each on one file or one folder; a sync makes the effects before it on that file or folder
durable, and nothing else's. `crash_states` builds from this what a power cut may leave. What it does not do: it reads no
real disk but once, in `Disk.of`; modes, owners, times and extended attributes are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset; a file that ends before is extended, with zeros between."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A truncation or extension; what appears reads as zeros."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Punch:
    """A range within the file that reads as zeros from now on."""

    inode: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one folder that change together: (name, inode) gives, (name, None) takes away."""

    inode: int
    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """What was done before to this file, or to the names in this folder, is durable."""

    inode: int


Effect: TypeAlias = Write | Resize | Punch | Names
Entry: TypeAlias = Effect | Sync
Tree: TypeAlias = dict[str, bytes | None]
"""Contents by path below the root; None is a folder."""


class Disk:
    """Files by inode, folders by inode. Inodes are our own numbers and are never used twice."""

    def __init__(self, files: dict[int, bytearray], folders: dict[int, dict[str, int]]) -> None:
        self.files = files
        self.folders = folders
        self._next = max([ROOT, *files, *folders]) + 1

    @classmethod
    def of(cls, root: Path) -> tuple[Disk, dict[tuple[int, int], int]]:
        """Read what is below `root`; return it with our numbers of the real inodes."""
        disk = cls({}, {ROOT: {}})
        numbers = {real(root): ROOT}
        for path in sorted(root.rglob("*")):
            known = real(path)
            if known not in numbers:
                numbers[known] = disk.new_folder() if path.is_dir() else disk.new_file(path.read_bytes())
            disk.folders[numbers[real(path.parent)]][path.name] = numbers[known]
        return disk, numbers

    def new_file(self, data: bytes = b"") -> int:
        """Make a file without a name."""
        self.files[self._next] = bytearray(data)
        self._next += 1
        return self._next - 1

    def new_folder(self) -> int:
        """Make a folder without a name."""
        self.folders[self._next] = {}
        self._next += 1
        return self._next - 1

    def copy(self) -> Disk:
        """Return an independent copy."""
        disk = Disk(
            {inode: bytearray(data) for inode, data in self.files.items()},
            {inode: dict(names) for inode, names in self.folders.items()},
        )
        disk._next = self._next
        return disk

    def apply(self, effect: Effect) -> None:
        """Do what the effect says. A file or folder that is not known yet appears."""
        if isinstance(effect, Names):
            change_names(self.folders.setdefault(effect.inode, {}), effect)
        else:
            change_bytes(self.files.setdefault(effect.inode, bytearray()), effect)

    def tree(self) -> Tree:
        """Return what is reachable from the root."""
        found: Tree = {}
        self._walk(ROOT, "", found)
        return found

    def _walk(self, folder: int, prefix: str, found: Tree) -> None:
        for name, inode in self.folders.get(folder, {}).items():
            path = prefix + name
            if inode in self.folders:
                found[path] = None
                self._walk(inode, f"{path}/", found)
            else:
                found[path] = bytes(self.files.get(inode, b""))


def change_names(names: dict[str, int], effect: Names) -> None:
    """Apply an effect on a folder."""
    for name, inode in effect.changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def change_bytes(data: bytearray, effect: Write | Resize | Punch) -> None:
    """Apply an effect on a file."""
    if isinstance(effect, Write):
        end = effect.offset + len(effect.data)
        _extend(data, end)
        data[effect.offset : end] = effect.data
    elif isinstance(effect, Resize):
        _extend(data, effect.size)
        del data[effect.size :]
    else:
        end = min(effect.offset + effect.length, len(data))
        data[effect.offset : end] = bytes(max(0, end - effect.offset))


def real(path: Path) -> tuple[int, int]:
    """Return what the system knows a file by."""
    status = path.stat(follow_symlinks=False)
    return status.st_dev, status.st_ino


def _extend(data: bytearray, size: int) -> None:
    if len(data) < size:
        data.extend(bytes(size - len(data)))
