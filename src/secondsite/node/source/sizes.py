"""Disks that were resized while they were protected.

One that has grown is followed: its digest table grows, what appears is looked at, and the next point has the new size.
It may have been made smaller before and larger again, which drops the end of its data and leaves no trace in any bitmap,
so whatever it held is looked at once more (not what is a hole by its server's word: QEMU 7.2 remembers the block status of
before the cut). One that is smaller than it was is refused before
anything is shipped: the replica would have to lose data that may be missed later.
"""

from __future__ import annotations

from collections.abc import Mapping

from secondsite.blocks import DigestTable
from secondsite.capture.port import SnapshotDisk
from secondsite.capture.runs import RunList, Runs
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


def _suspects(disk: SnapshotDisk, table: DigestTable) -> Runs:
    found = RunList()
    if disk.device:
        found.add(0, -(-disk.size // BLOCK))
    for first, count in table.nonzero_ranges():
        found.add(first, first + count)
    # With the block that the old end cut through: its digest was of what was before the end.
    found.add(table.disk_size // BLOCK, -(-disk.size // BLOCK))
    return found.merged()
