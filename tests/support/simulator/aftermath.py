"""What a disk may hold of a folder after a power cut: each name, file and unit that was not synced is there or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

SECTOR: Final = 512
REAL_SCANDIR = os.scandir
_NAMES_KEPT: Final = (".qcow2",)


class Aftermath:
    """Builds what a disk may hold of `root` after a power cut."""

    def __init__(
        self,
        root: Path,
        names: dict[int, dict[str, int]],
        contents: dict[int, bytes],
        reaching: Callable[[int, bytes], bytes],
        chance: Random,
    ) -> None:
        self._root = root
        self._names = names
        self._contents = contents
        self._reaching = reaching
        self._chance = chance
        self._paths: dict[int, Path] = {}
        self._folders: dict[int, dict[str, int]] = {}
        self._links: dict[int, str] = {}
        self._of_hypervisor: set[int] = set()
        """Folders in which images lie: they are there with them."""
        for folder, _, _ in os.walk(root):
            here = Path(folder)
            found = {entry.name: entry.stat(follow_symlinks=False).st_ino for entry in REAL_SCANDIR(here)}
            inode = here.stat().st_ino
            self._folders[inode] = found
            self._paths[inode] = here
            for name, number in found.items():
                path = here / name
                self._paths[number] = path
                if name.endswith(_NAMES_KEPT):
                    self._of_hypervisor |= {above.stat().st_ino for above in (here, *here.parents)}
                if path.is_symlink():
                    self._links[number] = str(path.readlink())
        self._mode = chance.choice(("none", "some", "some", "all"))
        self._chosen = {inode: self._choose(inode) for inode in sorted({*self._folders, *names})}
        self._keep_renamed()

    def build(self, target: Path) -> None:
        target.mkdir()
        self._build(self._root.stat().st_ino, target)

    def _choose(self, inode: int) -> dict[str, int]:
        now, durable = self._folders.get(inode, {}), self._names.get(inode, {})
        chosen: dict[str, int] = {}
        for name in sorted({*now, *durable}):
            old, new = durable.get(name), now.get(name)
            keep = new is not None and (new in self._links or new in self._of_hypervisor)
            if old == new or keep or self._mode == "all" or name.endswith(_NAMES_KEPT):
                pick = new
            elif self._mode == "none" or self._chance.random() < 0.5:
                pick = old
            else:
                pick = new
            if pick is not None:
                chosen[name] = pick
        return chosen

    def _keep_renamed(self) -> None:
        """A rename is one change: a file with a durable name that still has a name has one afterwards."""
        reached = {inode for names in self._chosen.values() for inode in names.values()}
        for folder, names in self._names.items():
            for name, inode in names.items():
                if inode not in reached and inode in self._paths and name not in self._chosen[folder]:
                    self._chosen[folder][name] = inode

    def _build(self, inode: int, target: Path) -> None:
        for name, child in sorted(self._chosen.get(inode, {}).items()):
            there = target / name
            if child in self._links:
                there.symlink_to(self._links[child])
            elif child in self._folders or child in self._names:
                there.mkdir()
                self._build(child, there)
            elif name.endswith(_NAMES_KEPT):
                os.link(self._paths[child], there)  # the hypervisor's: with its inode and its time of change
            else:
                there.write_bytes(self._content(child))

    def _content(self, inode: int) -> bytes:
        durable = self._contents.get(inode, b"")
        path = self._paths.get(inode)
        now = durable if path is None else self._reaching(inode, path.read_bytes())
        return now if durable == now else torn(durable, now, self._chance)


def torn(durable: bytes, now: bytes, chance: Random) -> bytes:
    """Return what a disk may hold of a file that was `durable` and became `now` without a sync."""
    how = chance.choice(("durable", "now", "torn", "torn", "size only"))
    if how in {"durable", "now"}:
        return durable if how == "durable" else now
    unit = chance.choice((SECTOR, 4096))
    size = chance.choice((len(durable), len(now), len(now)))
    result = bytearray(durable[:size].ljust(size, b"\0"))
    if how == "torn":
        for at in range(0, size, unit):
            if chance.random() < 0.5:
                piece = now[at : min(at + unit, size)]
                result[at : at + len(piece)] = piece
    return bytes(result)
