"""The old machine's disks, before they become the base of a journal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path

from secondsite.capture.layers import layers_of
from secondsite.capture.port import is_ours
from secondsite.errors import ConflictError, UnavailableError
from secondsite.fabric.port import VmInfo
from secondsite.model.ids import DiskKey
from secondsite.nbd.image import stop_shared

Marks = list[list[int]]


def release_images(paths: Iterable[Path], run: Path) -> None:
    """Remove our dirty bitmaps from the images: what they track has been shipped. Idempotent."""
    for path in paths:
        stop_shared(path, run)  # a retry: the server of the first try holds the image
        for name in bitmaps(path):
            if is_ours(name):
                _qemu_img("bitmap", "--remove", str(path), name)


def marks_of(vm: VmInfo, disks: Collection[DiskKey]) -> tuple[dict[DiskKey, str], dict[DiskKey, Marks]]:
    """Return the paths of a machine's protected disks, and what the files of each (with its backing files) look like.

    Raises ConflictError if a protected disk is not there.
    """
    paths = {disk.key: disk.path for disk in vm.disks if disk.key in disks and disk.path is not None}
    if set(paths) != set(disks):
        raise ConflictError(
            f"the disks of {vm.name} are not what they were: {', '.join(sorted(paths)) or 'none'}",
            hint="disable the item and protect the machine again",
        )
    return {key: str(path) for key, path in paths.items()}, {
        key: mark_of_chain(path) for key, path in paths.items()
    }


def mark_of_chain(path: Path) -> Marks:
    """Return device, inode, size and time of the last write (ns) of an image and of each file that it is based on."""
    marks = []
    for layer in layers_of(path):
        status = layer.info.path.stat()
        marks.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
    return marks


def bitmaps(path: Path) -> list[str]:
    """Return the names of the persistent bitmaps in a qcow2 image."""
    info = json.loads(_qemu_img("info", "--output=json", str(path)))
    specific = info.get("format-specific", {}).get("data", {})
    return [str(bitmap["name"]) for bitmap in specific.get("bitmaps", [])]


def _qemu_img(*args: str) -> str:
    done = subprocess.run(["qemu-img", *args], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise UnavailableError(
            f"qemu-img {args[0]} failed: {done.stderr.strip()}", hint="is a machine using the image?"
        )
    return done.stdout
