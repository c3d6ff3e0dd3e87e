"""Raw files of a shut-off machine: whether they were written since a snapshot, by their size and times.

Nothing records into a raw file's metadata what changed while nobody looks, but a file that was written has another time.
So the name of an offline snapshot's checkpoint carries a digest of what the files look like: `<new>.<digest>`.

Times are those of the kernel's clock tick, so that a write within the same tick as the look at it leaves no trace: files
that were written less than SETTLED_S ago are not vouched for. Nor is a block device, which has no time of writing. Then
there is no checkpoint, and the next snapshot compares.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from blake3 import blake3

from secondsite.capture.layers import mark_of
from secondsite.capture.machine import MachineDisk
from secondsite.errors import TrackingLostError

SETTLED_S: Final = 2.0
_DIGITS: Final = 24
_SEPARATOR: Final = "."


def checkpoint(new: str, disks: Collection[MachineDisk]) -> str:
    """Return the checkpoint of a snapshot that is about to be called `new`; "" if the next one must compare.

    Looked at before the disks are read: who writes to them while they are read makes the snapshot void anyway.
    """
    if not disks:
        return new
    digest = _digest(disks)
    return "" if digest is None else f"{new}{_SEPARATOR}{digest}"


def require(since: str, disks: Collection[MachineDisk]) -> None:
    """Raise TrackingLostError unless the files are as they were when `since` was made."""
    if not disks:
        return
    digest = since.rpartition(_SEPARATOR)[2] if _SEPARATOR in since else ""
    if not digest or digest != _digest(disks, settled=False):
        keys = ", ".join(disk.key for disk in disks)
        raise TrackingLostError(
            f"nothing recorded what was written to the raw disks {keys} since {since}",
            hint="raw images keep no bitmap: after the machine was off they are compared",
            checkpoint=since,
        )


def _digest(disks: Collection[MachineDisk], *, settled: bool = True) -> str | None:
    """Return what tells the files' present state from any other; None if nothing does."""
    hasher = blake3()
    for disk in sorted(disks, key=lambda disk: disk.key):
        if not disk.path.is_file():
            return None
        mark = mark_of(disk.path)
        newest_s = max(mark.modified_ns, mark.changed_ns) / 1e9
        if settled and time.time() - newest_s < SETTLED_S:
            return None
        hasher.update(repr((disk.key, str(disk.path), tuple(mark))).encode())
    return hasher.hexdigest()[:_DIGITS]
