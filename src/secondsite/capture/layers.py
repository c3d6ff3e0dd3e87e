"""The layers of a shut-off disk: which files they are, whether they were written since, and how they are read.

They are read through a qemu-nbd that takes no lock (qemu's force-share), so that a machine may open its images at any
time. Whoever reads so compares `mark` before and after: it changes with every write.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from secondsite import processes
from secondsite.capture.bitmaps import ImageInfo, image_info
from secondsite.errors import NotFoundError
from secondsite.nbd.qemu_nbd import ImageServer

_FOLDER_PREFIX: Final = "ss-off-"
_STOP_TIMEOUT_S: Final = 10.0


class Mark(NamedTuple):
    """Differs when a file was written or replaced."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of a disk. `mark` was taken before `info` was read."""

    info: ImageInfo
    mark: Mark

    def is_untouched(self) -> bool:
        """Whether the file is as it was."""
        try:
            return mark_of(self.info.path) == self.mark
        except NotFoundError:
            return False


def mark_of(path: Path) -> Mark:
    """Return the mark of a file as it is now."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise NotFoundError(f"no such image: {path}", path=str(path)) from error
    return Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def layers_of(path: Path) -> list[Layer]:
    """Return the layers that are files, from the active one down. A view of a journal below is no file."""
    layers = []
    following: Path | None = path
    while following is not None:
        mark = mark_of(following)
        layers.append(Layer(image_info(following), mark))
        following = layers[-1].info.backing
    return layers


class SharingServer(ImageServer):
    """A read-only qemu-nbd for a layer, that takes no lock."""

    def __init__(self, layer: Layer, socket: Path, bitmap: str | None) -> None:
        super().__init__(layer.info.path, layer.info.format, socket, writable=False, bitmap=bitmap)

    def _argv(self, driver: str) -> list[str]:
        *options, image = super()._argv(driver)
        return [*options, f"{image},read-only=on,force-share=on"]


@contextmanager
def server_folder(scratch: Path) -> Iterator[Path]:
    """A folder for the sockets of one snapshot."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, dir=scratch) as folder:
        yield Path(folder)


def end_leftover_servers(scratch: Path) -> None:
    """End the servers of snapshots whose process died, and remove their folders."""
    for folder in scratch.glob(f"{_FOLDER_PREFIX}*"):
        for pid_file in folder.glob("*.pid"):
            ref = processes.find(pid_file)
            if ref is not None:
                processes.terminate(ref, _STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)
