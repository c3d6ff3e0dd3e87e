"""The old machine's disks, before they become the base of a journal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secondsite.capture.bitmaps import QCOW2, RAW
from secondsite.capture.layers import layers_of, mark_of
from secondsite.capture.port import is_ours
from secondsite.errors import ConflictError, UnavailableError
from secondsite.fabric.port import VmInfo
from secondsite.model.ids import DiskKey
from secondsite.nbd.image import stop_shared

Marks = list[list[int]]
_MAGIC: Final = b"QFI\xfb"


def is_image(path: Path) -> bool:
    """Whether there is a file or a block device."""
    return path.is_file() or path.is_block_device()


def release_images(paths: Mapping[DiskKey, Path], formats: Mapping[DiskKey, str], run: Path) -> None:
    """Remove our dirty bitmaps from the images: what they track has been shipped. Idempotent.

    formats: of those that are not qcow2; they hold none.
    """
    for disk, path in paths.items():
        stop_shared(path, run)  # a retry: the server of the first try holds the image
        if formats.get(disk, QCOW2) != QCOW2:
            continue
        for name in bitmaps(path):
            if is_ours(name):
                _qemu_img("bitmap", "--remove", "-f", QCOW2, str(path), name)


@dataclass(frozen=True, slots=True)
class OldDisks:
    """The images of a machine's protected disks, by disk key. formats: of those that are not qcow2; never guessed."""

    images: Mapping[DiskKey, str]
    formats: Mapping[DiskKey, str]

    def marks(self) -> dict[DiskKey, Marks]:
        """Return what the files of each disk look like now."""
        return {
            disk: mark_of_chain(Path(path), self.formats.get(disk, QCOW2))
            for disk, path in self.images.items()
        }


def old_disks(vm: VmInfo, disks: Collection[DiskKey]) -> OldDisks:
    """Return a machine's protected disks.

    Raises ConflictError if one is not there.
    """
    found = {disk.key: disk for disk in vm.disks if disk.key in disks and disk.path is not None}
    if set(found) != set(disks):
        raise ConflictError(
            f"the disks of {vm.name} are not what they were: {', '.join(sorted(found)) or 'none'}",
            hint="disable the item and protect the machine again",
        )
    return OldDisks(
        {key: str(disk.path) for key, disk in found.items()},
        {key: disk.format for key, disk in found.items() if disk.format != QCOW2},
    )


def mark_of_chain(path: Path, image_format: str = QCOW2) -> Marks:
    """Return device, inode, size and time of the last write (ns) of an image and of each file that it is based on.

    A raw disk is based on nothing, whatever a guest wrote at its beginning.
    """
    if path.is_block_device():
        return [list(mark_of(path))]
    layers = [path] if image_format == RAW or not _is_qcow2(path) else _layers(path)
    marks = []
    for layer in layers:
        status = layer.stat()
        marks.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
    return marks


def _layers(path: Path) -> list[Path]:
    return [layer.info.path for layer in layers_of(path)]


def _is_qcow2(path: Path) -> bool:
    with path.open("rb") as file:
        magic: bytes = file.read(len(_MAGIC))
    return magic == _MAGIC


def bitmaps(path: Path) -> list[str]:
    """Return the names of the persistent bitmaps in an image; only qcow2 keeps any."""
    if not _is_qcow2(path):
        return []
    info = json.loads(_qemu_img("info", "-f", QCOW2, "--output=json", str(path)))
    specific = info.get("format-specific", {}).get("data", {})
    return [str(bitmap["name"]) for bitmap in specific.get("bitmaps", [])]


def _qemu_img(*args: str) -> str:
    done = subprocess.run(["qemu-img", *args], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise UnavailableError(
            f"qemu-img {args[0]} failed: {done.stderr.strip()}", hint="is a machine using the image?"
        )
    return done.stdout
