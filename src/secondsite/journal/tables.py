"""Writes the digest table of a disk as it is at a view's point, or in a base that has no point yet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secondsite import durable
from secondsite.blocks import DigestTable, block_digests
from secondsite.errors import ConflictError
from secondsite.hrl.index import ZERO, ExtentIndex
from secondsite.journal.apply import partial_blocks, touched_blocks
from secondsite.journal.store import Store
from secondsite.journal.view import DiskView, View
from secondsite.model.ids import DiskKey
from secondsite.model.units import BLOCK, MIB

_CHUNK_BLOCKS: Final = 4 * MIB // BLOCK


def write_table(store: Store, view: View, disk: DiskKey, path: Path) -> None:
    """Copy the base's table and set the cells of every block that the view's logs touch.

    A fold that runs meanwhile changes only cells of blocks that are set here anyway.

    Raises:
        ConflictError: `path` exists.
    """
    if path.exists():
        raise ConflictError(f"{path.name} exists already", path=str(path))
    store.size(disk)  # or NotFoundError
    temporary = durable.temporary_path(path)
    try:
        with store.open_table(disk, writable=False) as table:
            table.copy_to(temporary)
        with DigestTable.open(temporary, store.key, writable=True) as table:
            _fit(table, view.disks[disk], store.key)
            _update(table, view.disks[disk], store.key)
            table.sync()
        durable.rename_durable(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_base_table(store: Store, disk: DiskKey, path: Path) -> None:
    """Copy the base's table as it is. Nothing is written to the base meanwhile: the caller sees to that.

    Raises:
        ConflictError: `path` exists.
    """
    if path.exists():
        raise ConflictError(f"{path.name} exists already", path=str(path))
    temporary = durable.temporary_path(path)
    try:
        with store.open_table(disk, writable=False) as table:
            table.copy_to(temporary)
        durable.rename_durable(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _fit(table: DigestTable, disk: DiskView, key: bytes) -> None:
    """Have the table end where the disk ended at the point: it may have grown since."""
    if table.disk_size == disk.size:
        return
    table.resize(disk.size)
    tail = disk.size // BLOCK
    if disk.size % BLOCK:
        table.put(tail, block_digests(disk.read(tail * BLOCK, disk.size - tail * BLOCK), key))


def _update(table: DigestTable, disk: DiskView, key: bytes) -> None:
    index = ExtentIndex.from_lookup(disk.index)
    zero = index.source == ZERO
    zeros = _part(index, zero)
    for start, end in zip(zeros.start.tolist(), zeros.end.tolist(), strict=True):
        first = -(-start // BLOCK)
        last = -(-end // BLOCK) if end == disk.size else end // BLOCK
        if first < last:
            table.fill_zero(first, last - first)
    ranges = touched_blocks(_part(index, ~zero)).tolist()
    ranges += [(block, block + 1) for block in partial_blocks(zeros, disk.size)]
    for first, last in ranges:
        for at in range(first, last, _CHUNK_BLOCKS):
            stop = min(at + _CHUNK_BLOCKS, last)
            data = disk.read(at * BLOCK, min(stop * BLOCK, disk.size) - at * BLOCK)
            table.put(at, block_digests(data, key))


def _part(index: ExtentIndex, chosen: NDArray[np.bool_]) -> ExtentIndex:
    return ExtentIndex(index.start[chosen], index.end[chosen], index.source[chosen], index.location[chosen])
