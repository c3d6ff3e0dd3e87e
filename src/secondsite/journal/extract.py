"""Turns a point into disk images, with nothing but the journal's folder.

What it promises: an image that appears under its name holds the point's bytes, each compared with its digest; on any
damage nothing appears and the error names the place. What it does not do: other formats than raw (the command converts).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from secondsite import durable
from secondsite.blocks import zero_blocks
from secondsite.errors import ConflictError, NotFoundError
from secondsite.journal.view import DiskView, View
from secondsite.model.ids import DiskKey
from secondsite.model.units import BLOCK, MIB

_CHUNK: Final = 4 * MIB
DEFINITION: Final = "definition"
MANIFEST: Final = "manifest.json"

ExtractProgress = Callable[[int, int], None]
"""Called with the bytes of the disk done and its size."""
Convert = Callable[[Path, Path], None]
"""Makes the second file, durably, of the first."""


def extract_disk(
    view: View,
    disk: DiskKey,
    output: Path,
    *,
    convert: Convert | None = None,
    progress: ExtractProgress = lambda _done, _size: None,
) -> None:
    """Write a disk to a new sparse file; the view was opened with `verify`.

    Raises:
        ConflictError: `output` exists.
        CorruptError, NoSpaceError: nothing was left behind.
    """
    if disk not in view.disks:
        raise NotFoundError(
            f"the point has no disk {disk}", hint="its disks are " + ", ".join(sorted(view.disks)), disk=disk
        )
    with _new(output) as temporary:
        if convert is None:
            _write(view.disks[disk], temporary, progress)
            return
        raw = durable.temporary_path(output.with_name(output.name + ".raw"))
        try:
            _write(view.disks[disk], raw, progress)
            convert(raw, temporary)
        finally:
            raw.unlink(missing_ok=True)


def extract_all(
    view: View,
    disks: Collection[DiskKey],
    output: Path,
    *,
    suffix: str,
    convert: Convert | None = None,
    progress: Callable[[DiskKey], ExtractProgress] = lambda _disk: lambda _done, _size: None,
) -> list[Path]:
    """Write disks, the manifest and the machine's definition into a new folder: all of them or nothing."""
    with _new(output) as temporary:
        temporary.mkdir()
        for disk in disks:
            extract_disk(view, disk, temporary / f"{disk}.{suffix}", convert=convert, progress=progress(disk))
        durable.write_atomic(temporary / MANIFEST, view.manifest.to_bytes(), mode=0o600)
        durable.write_atomic(temporary / DEFINITION, view.manifest.vm.text.encode(), mode=0o600)
    return [output / f"{disk}.{suffix}" for disk in disks]


def _write(disk: DiskView, path: Path, progress: ExtractProgress) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    with durable.naming_full_disk(path), path.open("xb", buffering=0) as file:
        file.truncate(disk.size)
        for extent in disk.extents(0, disk.size):
            end = extent.offset + extent.length
            for at in () if extent.zero else range(extent.offset, end, _CHUNK):
                part = buffer[: min(_CHUNK, end - at)]
                disk.readinto(at, part)
                for start, stop in _filled(part):
                    file.seek(at + start)
                    rest = part[start:stop]
                    while rest:
                        rest = rest[file.write(rest) :]
                progress(at + len(part), disk.size)
            progress(end, disk.size)
        durable.fsync_file(file.fileno())


def _filled(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the ranges of blocks that are not all zero, so that the image stays sparse."""
    edges = np.flatnonzero(np.diff(~zero_blocks(data), prepend=False, append=False))
    for first, last in edges.reshape(-1, 2).tolist():
        yield first * BLOCK, min(last * BLOCK, len(data))


@contextmanager
def _new(output: Path) -> Iterator[Path]:
    """Give a temporary name that becomes `output` if all goes well, and is removed with all below it if not."""
    if output.exists():
        raise ConflictError(
            f"{output} exists already", hint="choose another name, or remove it", path=str(output)
        )
    if not output.parent.is_dir():
        raise NotFoundError(f"there is no folder {output.parent}", path=str(output.parent))
    temporary = durable.temporary_path(output)
    try:
        yield temporary
        durable.rename_durable(temporary, output)
    except BaseException:
        if temporary.exists():
            durable.remove_tree(temporary)
        raise
