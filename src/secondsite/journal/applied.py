"""Which parts of the initial replication are in the base already, so that an answer that was lost can be given again.

It is of one writer's life: the parts that nobody synced end with the writer, and with them goes what came again since it was
applied. Who asks the next writer is told to send the part again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from secondsite.model.ids import Digest, DiskKey


class AppliedParts:
    """A set of parts by disk: lists of zeros may be the same for several. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._applied: dict[Digest, set[DiskKey]] = {}

    def has(self, disk: DiskKey, digest: Digest) -> bool:
        """Whether the part was applied to that disk, and did not come again since."""
        with self._lock:
            return disk in self._applied.get(digest, ())

    def add(self, disk: DiskKey, digests: Iterable[Digest]) -> None:
        """The base holds them, durably."""
        with self._lock:
            for digest in digests:
                self._applied.setdefault(digest, set()).add(disk)

    def forget(self, digest: Digest) -> None:
        """The part comes again: that it was applied once, to whatever disk, says nothing of this time."""
        with self._lock:
            self._applied.pop(digest, None)

    def clear(self) -> None:
        """There is a point: nothing more is applied this way."""
        with self._lock:
            self._applied.clear()
