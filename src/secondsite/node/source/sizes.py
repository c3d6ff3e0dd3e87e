"""Disks that were resized while they were protected.

One that has grown is followed: its digest table grows, what appears is looked at, and the next point has the new size.
It may have been made smaller before and larger again, which drops the end of its data and leaves no trace in any bitmap,
so whatever it held is looked at once more (not what is a hole by its server's word: QEMU 7.2 remembers the block status of
before the cut). One that is smaller than it was is refused before
anything is shipped: the replica would have to lose data that may be missed later.

One that was made smaller and brought back to just its old size is told by one block: the last one that holds data at the target
and was not written since. A cut loses everything behind it, so if it lost anything that no bitmap tells of, it lost that
block. It is read each time; if it is not what the target holds, all that the disk held is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secondsite.blocks import UNKNOWN, ZERO_DIGEST, DigestTable, block_digests
from secondsite.capture.port import SnapshotDisk
from secondsite.capture.runs import RunList, Runs, intersect
from secondsite.errors import SecondSiteError
from secondsite.model.ids import DiskKey
from secondsite.model.units import BLOCK


class DiskShrunkError(SecondSiteError):
    """A protected disk is smaller than it was when it was last replicated."""

    code = "disk_shrunk"
    default_hint = (
        "enlarge it again to at least its old size, or disable the item and protect the machine anew; "
        "the recovery points that exist keep the old size"
    )


def grown(
    disks: Mapping[DiskKey, SnapshotDisk], tables: Mapping[DiskKey, DigestTable]
) -> dict[DiskKey, Runs]:
    """Return the blocks to look at on each disk that has grown since its table was made.

    Raises:
        DiskShrunkError: a disk is smaller.
    """
    for disk, table in tables.items():
        if disks[disk].size < table.disk_size:
            raise DiskShrunkError(
                f"disk {disk} shrank from {table.disk_size} to {disks[disk].size} bytes",
                disk=disk,
                size=disks[disk].size,
                was=table.disk_size,
            )
    return {
        disk: _suspects(disks[disk], table)
        for disk, table in tables.items()
        if disks[disk].size > table.disk_size
    }


def cut(
    disks: Mapping[DiskKey, SnapshotDisk],
    tables: Mapping[DiskKey, DigestTable],
    suspects: Mapping[DiskKey, Runs],
    key: bytes,
) -> dict[DiskKey, Runs]:
    """Return the blocks to look at on each disk that lost its end since its table was made, and has its old size.

    suspects: what is looked at anyway, because the target may hold something else there. key: that of the tables.
    Of a block device which kept some of what it held behind the cut it may say nothing.
    """
    found = {}
    for name, table in tables.items():
        disk = disks[name]
        if disk.whole or disk.size != table.disk_size:
            continue
        block = _last_unwritten(disk, table, suspects.get(name))
        if block is not None and _digest(disk, block, key) != table.get(block, 1)[0]:
            found[name] = _suspects(disk, table)
    return found


def _last_unwritten(disk: SnapshotDisk, table: DigestTable, suspects: Runs | None) -> int | None:
    """Return the last block whose cell is known and not zero, and which nobody will look at."""
    looked_at = RunList()
    for extent in disk.changed():
        looked_at.add(extent.offset // BLOCK, -(-(extent.offset + extent.length) // BLOCK))
    if suspects is not None:
        looked_at.extend(suspects)
    runs = looked_at.merged()
    for first, cells in table.windows_from_end():
        held = (cells != ZERO_DIGEST) & (cells != UNKNOWN)
        for start, end in (
            intersect(runs, np.array([[first, first + len(cells)]], np.int64)) - first
        ).tolist():
            held[start:end] = False
        blocks = np.flatnonzero(held)
        if len(blocks):
            return first + int(blocks[-1])
    return None


def _digest(disk: SnapshotDisk, block: int, key: bytes) -> np.uint64:
    offset = block * BLOCK
    data = b"".join(bytes(view) for _, view in disk.read([(offset, min(BLOCK, disk.size - offset))]))
    return np.uint64(block_digests(data, key)[0])


def _suspects(disk: SnapshotDisk, table: DigestTable) -> Runs:
    found = RunList()
    if disk.device:
        found.add(0, -(-disk.size // BLOCK))
    for first, count in table.nonzero_ranges():
        found.add(first, first + count)
    # With the block that the old end cut through: its digest was of what was before the end.
    found.add(table.disk_size // BLOCK, -(-disk.size // BLOCK))
    return found.merged()
