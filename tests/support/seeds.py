"""Seeds: folders with images of disks, and a target that fills a fresh journal from them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from secondsite.blocks import DigestTable, block_digests
from secondsite.journal.base import open_raw_base
from secondsite.model.ids import DiskKey
from secondsite.model.units import KIB
from secondsite.node.config import Folders
from support.journals import ITEM, KEY, VDA, VDB
from support.role_world import Side

SIZES = {VDA: 320 * KIB, VDB: 70 * KIB}  # the last block of vdb is short


def pattern(size: int, value: int = 1) -> bytes:
    """Return a disk's contents: blocks of data and of zeros, each block of data another."""
    blocks = [
        bytes([value, number % 251]) * 2048 if number % 3 else bytes(4096)
        for number in range(-(-size // 4096))
    ]
    return b"".join(blocks)[:size]


CONTENT = {disk: pattern(size) for disk, size in SIZES.items()}


def write_raw(folder: Path, disk: DiskKey, content: bytes) -> Path:
    """Write the raw image of a disk."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{disk}.raw"
    path.write_bytes(content)
    return path


def write_qcow2(folder: Path, disk: DiskKey, content: bytes) -> Path:
    """Write the qcow2 image of a disk."""
    raw = write_raw(folder, DiskKey("tmp"), content)
    path = folder / f"{disk}.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    raw.unlink()
    return path


def write_seed(folder: Path, content: Mapping[DiskKey, bytes] | None = None) -> Path:
    """Write a seed of raw images, as `node export` leaves it; returns its folder."""
    for disk, data in (content or CONTENT).items():
        write_raw(folder, disk, data)
    write_export(folder, content or CONTENT)
    return folder


def write_export(folder: Path, content: Mapping[DiskKey, bytes]) -> None:
    """Write the export.json of raw images that hold this."""
    disks = {
        disk: {"file": f"{disk}.raw", "size": len(data), "blake3": blake3(data).hexdigest()}
        for disk, data in content.items()
    }
    document = {"format": "secondsite-export/1", "name": "web", "vm": "v", "time": "t", "disks": disks}
    (folder / "export.json").write_text(json.dumps(document))


def create_args(seed: Path | None, sizes: Mapping[DiskKey, int] | None = None) -> dict[str, Any]:
    """Return what `target.create` takes."""
    args = {
        "name": "web",
        "source_node": "source",
        "disks": dict(sizes or SIZES),
        "digest_key": KEY.hex(),
        "policy": {},
    }
    return args if seed is None else {**args, "seed": str(seed)}


class SeedSide(Side):
    """A target without items."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._open(open_raw_base)

    def reopen(self) -> None:
        """The node was killed and runs again."""
        self.close()
        self._open(open_raw_base)

    def base(self) -> dict[DiskKey, bytes]:
        """Return what the journal's base holds."""
        journal = self.journals.get(ITEM)
        return {disk: (journal.path / "base" / f"{disk}.raw").read_bytes() for disk in journal.disks}

    def table_is_true(self) -> bool:
        """Whether the base's digest table says what the base holds, and nothing is unknown."""
        journal = self.journals.get(ITEM)
        for disk, content in self.base().items():
            path = self.root / f"{disk}.told"
            path.unlink(missing_ok=True)
            journal.initial_table(disk, path)
            with DigestTable.open(path, KEY) as table:
                if table.get(0, len(table)).tolist() != block_digests(content, KEY).tolist():
                    return False
        return True

    def leftovers(self) -> list[str]:
        """Return what a seeding, or an item that is gone, has left here."""
        return seeding_leftovers(self.folders)


def seeding_leftovers(folders: Folders) -> list[str]:
    """Return sockets, pid files and work folders of seedings, journals and items' folders."""
    places = (folders.run.glob("seed-*"), folders.items.glob("*"), folders.journal(ITEM).parent.glob("*"))
    return sorted(str(path) for place in places for path in place)
