"""A machine in memory that tracks changes: the adapter of the port that tests of everything above capture share.

It keeps the port's promises exactly, at a granularity of 64 KiB like libvirt, and can be made to lose its tracking as a
killed QEMU does. It is also the model that the real adapters are tested against.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from secondsite.capture.port import Extent, Snapshot, SnapshotDisk, check_checkpoint_name, joined, pieces
from secondsite.errors import TrackingLostError, UnavailableError
from secondsite.model.ids import DiskKey
from secondsite.model.manifest import VmDefinition
from secondsite.model.units import KIB

GRANULARITY: Final = 64 * KIB


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class FakeDisk:
    """The disk's bytes, and for each checkpoint the granules that changed since."""

    content: bytearray
    changed: dict[str, set[int]] = field(default_factory=dict)

    def write(self, offset: int, data: bytes) -> None:
        """Write as the guest does."""
        if offset + len(data) > len(self.content):
            raise ValueError("beyond the end of the disk")
        self.content[offset : offset + len(data)] = data
        granules = range(offset // GRANULARITY, -(-(offset + len(data)) // GRANULARITY))
        for marks in self.changed.values():
            marks.update(granules)

    def resize(self, size: int) -> None:
        """Cut the disk, or extend it by zeros. As with QEMU's, no mark tells of either."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        for marks in self.changed.values():
            marks.intersection_update(range(-(-size // GRANULARITY)))


class _FakeSnapshotDisk:
    def __init__(self, content: bytes, marks: set[int] | None, check: Callable[[], None]) -> None:
        self._content = content
        self._marks = marks
        self._check = check
        self.size = len(content)
        self.whole = marks is None
        self.device = False

    def changed(self) -> Iterator[Extent]:
        granules = range(-(-self.size // GRANULARITY)) if self._marks is None else sorted(self._marks)

        def extents() -> Iterator[Extent]:
            for granule in granules:
                start = granule * GRANULARITY
                piece = self._content[start : start + GRANULARITY]
                yield Extent(start, len(piece), not any(piece))

        return joined(extents())

    def read(self, extents: Iterable[tuple[int, int]]) -> Generator[tuple[int, memoryview], None, None]:
        for offset, length in pieces(extents):
            self._check()
            yield offset, memoryview(self._content)[offset : offset + length]
        self._check()


class FakeCapture:
    """A machine with disks in memory; `Capture` by structure."""

    def __init__(
        self,
        disks: Mapping[DiskKey, int],
        *,
        clock: Callable[[], datetime] = _now,
        definition: VmDefinition | None = None,
    ) -> None:
        self.disks = {key: FakeDisk(bytearray(size)) for key, size in disks.items()}
        self.definition = definition or VmDefinition("fake", "a machine")
        self.fail_next: Exception | None = None
        """Raised by the next `snapshot`, once."""
        self.reachable = True
        """False: snapshots and reads of open ones raise UnavailableError."""
        self._clock = clock
        self._opened = itertools.count(1)
        self._open: set[int] = set()

    def write(self, disk: DiskKey, offset: int, data: bytes) -> None:
        """Write as the guest does."""
        self.disks[disk].write(offset, data)

    def lose_tracking(self) -> None:
        """Forget what changed, as a QEMU that was killed does."""
        for disk in self.disks.values():
            disk.changed.clear()

    @property
    def open_snapshots(self) -> int:
        """How many snapshots cost the guest space: more than none while nobody reads means a leftover."""
        return len(self._open)

    @property
    def checkpoints(self) -> set[str]:
        """The names that exist on all disks."""
        return set.intersection(*(set(disk.changed) for disk in self.disks.values()))

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        """See the port."""
        check_checkpoint_name(new)
        self._check()
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        if since is not None and since not in self.checkpoints:
            raise TrackingLostError(f"checkpoint {since} does not exist", checkpoint=since)
        self._open.clear()  # as the real ones do, it ends what was left before
        number = next(self._opened)
        self._open.add(number)
        time = self._clock()

        def check() -> None:
            self._check()
            if number not in self._open:
                raise UnavailableError("the snapshot was ended")

        snapshots: dict[DiskKey, SnapshotDisk] = {}
        for key, disk in self.disks.items():
            marks = None if since is None else set(disk.changed[since])
            snapshots[key] = _FakeSnapshotDisk(bytes(disk.content), marks, check)
            disk.changed[new] = set()
        return Snapshot(time, snapshots, self.definition, new, closer=lambda: self._open.discard(number))

    def forget(self, keep: Collection[str]) -> None:
        """See the port."""
        for disk in self.disks.values():
            disk.changed = {name: marks for name, marks in disk.changed.items() if name in keep}

    def tidy(self) -> None:
        """See the port."""
        self._check()
        self._open.clear()

    def _check(self) -> None:
        if not self.reachable:
            raise UnavailableError("the machine's hypervisor does not answer")
