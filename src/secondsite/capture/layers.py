"""The layers of a shut-off disk: which files they are, whether they were written since, and how they are read.

They are read through a qemu-nbd that takes no lock (qemu's force-share), so that a machine may open its images at any
time. Whoever reads so compares `mark` before and after: it changes with every write.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from secondsite import processes
from secondsite.capture.bitmaps import QCOW2, ImageInfo, image_info, raw_size
from secondsite.errors import NotFoundError, UnavailableError
from secondsite.nbd.qemu_nbd import ImageServer

_FOLDER_PREFIX: Final = "ss-off-"
_STOP_TIMEOUT_S: Final = 10.0


class Mark(NamedTuple):
    """Differs when a file was written or replaced.

    Of a block device, which has no time of writing, it is the kernel's count of what was written to it, after what is
    in the page cache was written out; and the host's boot, from which on it counts. A device that is taken down and set
    up again begins anew as well, so such a mark holds for a reader's time, not for days.
    """

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
    if stat.S_ISBLK(status.st_mode):
        return _device_mark(path, status.st_rdev)
    return Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _device_mark(path: Path, number: int) -> Mark:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)  # what lies in the page cache is not counted yet
        finally:
            os.close(descriptor)
        counts = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
    except OSError as error:
        raise UnavailableError(f"{path} cannot be looked at: {error.strerror}", path=str(path)) from error
    # Documentation/block/stat: sectors written and discarded. Not the requests: a flush, as above, counts as one.
    boot = uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).int
    return Mark(number, boot, raw_size(path), int(counts[6]), int(counts[13]) if len(counts) > 13 else 0)


def layers_of(path: Path, image_format: str = QCOW2) -> list[Layer]:
    """Return the layers that are files, from the active one down. A view of a journal below is no file."""
    layers = []
    following: Path | None = path
    following_format: str | None = image_format
    while following is not None:
        mark = mark_of(following)
        layers.append(Layer(image_info(following, following_format), mark))
        following, following_format = layers[-1].info.backing, layers[-1].info.backing_format
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
