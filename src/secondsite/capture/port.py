"""The port to change tracking: a snapshot of all disks at one instant, and what changed since an earlier one.

Promises of every adapter:

- One snapshot is one instant for all its disks: it holds every write that the guest saw complete before `time`.
- `changed` names every block that differs from the state at `since`, and may name more. Whatever the adapter cannot
  vouch for is a TrackingLostError, raised before the first byte is handed out. When it is raised, the leftovers have
  been repaired: the same call with `since=None` then works, and tracking begins anew.
- Until `forget` has dropped it, `since` stays usable: a cycle that failed is repeated from the same `since` with
  another `new`, whatever became of the first.
- The guest is never stopped. A snapshot that would stop it for want of scratch space is given up (NoSpaceError).

What it does not do: compare with what the other side holds (`parts` does), freeze file systems in the guest, or
touch checkpoints that are not ours (ours are called `ss-...`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self, runtime_checkable

from secondsite.errors import InvalidInputError, SecondSiteError
from secondsite.model.ids import DiskKey
from secondsite.model.manifest import VmDefinition
from secondsite.model.units import MIB

PIECE: Final = MIB
"""Most bytes that `SnapshotDisk.read` yields at once."""
CHECKPOINT_PREFIX: Final = "ss-"
LIBVIRT_FORMAT: Final = "libvirt-domain"
"""`VmDefinition.format` of a libvirt domain's inactive XML."""

Cancelled = Callable[[], bool]
"""Asked between reads; true means: stop and raise CancelledError."""

_CHECKPOINT = re.compile(r"ss-[A-Za-z0-9_.-]{1,60}")


class CancelledError(SecondSiteError):
    """The caller's `cancelled` said so. What was begun is taken back; the call may be repeated."""

    code = "cancelled"


class Extent(NamedTuple):
    """A range of a disk, in bytes. `zero`: it reads as zeros and need not be read."""

    offset: int
    length: int
    zero: bool = False


class SnapshotDisk(Protocol):
    """One disk as it is in a snapshot. For one thread; two disks may be read by two."""

    @property
    def size(self) -> int:
        """Size in bytes, a multiple of 512."""
        ...

    @property
    def whole(self) -> bool:
        """Whether `changed` covers the whole disk, because the snapshot was made with `since=None`."""
        ...

    @property
    def device(self) -> bool:
        """Whether it is a block device, which may hold anything where it was made smaller and larger again."""
        ...

    def changed(self) -> Iterator[Extent]:
        """Yield what may differ from `since`: ascending, disjoint, neighbours of one kind joined."""
        ...

    def read(self, extents: Iterable[tuple[int, int]]) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, bytes) for (offset, length) ranges of any size, in their order and cut as by `pieces`.

        A view is valid until the next one is asked for. Close it, if it is not read to its end. When it ends, the snapshot was still what it
        claims to be; only then may what was read be called a point. Raises UnavailableError if the source is gone
        or changed, NoSpaceError if the snapshot was given up.
        """
        ...


@dataclass(slots=True)
class Snapshot:
    """All disks at one instant. A context manager; `close` may be called twice, and must be called once.

    time: the instant before the snapshot was begun, so that a recovery point never claims to be newer than it is.
    checkpoint: the name to give as `since` next time, if this snapshot is acknowledged; "" if there is none, and the
        next one must compare.
    """

    time: datetime
    disks: Mapping[DiskKey, SnapshotDisk]
    definition: VmDefinition
    checkpoint: str
    closer: Callable[[], None] = field(repr=False)
    closed: bool = False

    def close(self) -> None:
        """End the snapshot and give back what it holds; waits for the hypervisor, within bounds."""
        if not self.closed:
            self.closed = True
            self.closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SecondSiteError as second:
            if error is None:
                raise
            error.add_note(f"ending the snapshot failed as well: {second}")


class Capture(Protocol):
    """Change tracking of one machine. One caller at a time."""

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        """Begin a snapshot of all disks; `new` is a fresh name that was never used before (`ss-...`).

        since: `Snapshot.checkpoint` of the last acknowledged snapshot; None for everything that is allocated.

        Raises:
            TrackingLostError: what changed since `since` is not known; see the module's docstring.
            UnavailableError: the machine changed its state meanwhile, another backup runs, the hypervisor is gone.
            UnsupportedError: a disk that cannot be tracked.
            NoSpaceError: there is too little scratch space to begin.
        """
        ...

    def forget(self, keep: Collection[str]) -> None:
        """Drop all checkpoints of ours but those in `keep`. Idempotent; what does not exist is no error."""
        ...

    def tidy(self) -> None:
        """End what a process of ours that died left: its open snapshot, its files, a guest that it made stand still.

        An open snapshot costs the guest space as long as it is there, so this is called when a process begins, and
        before it waits for anything. Checkpoints stay. Cheap and without effect when there is nothing. A snapshot that
        is open is taken for a leftover, so only who has none open may call; it ends as if it had been given up.

        Raises:
            NotFoundError: there is no such machine.
            UnavailableError, TimeoutExceededError: the hypervisor does not answer; the call may be repeated.
        """
        ...


@runtime_checkable
class HasInstant(Protocol):
    """A capture that says when it matters that the machine stands still: only while its snapshot begins, not while it is prepared.

    instant: what the begin happens in; set by who makes several machines stand still together. The clock is read in it.
    """

    instant: Callable[[], AbstractContextManager[None]]


def check_checkpoint_name(name: str) -> str:
    """Return `name` if it may name a checkpoint of ours."""
    if not _CHECKPOINT.fullmatch(name):
        raise InvalidInputError(
            f"not a checkpoint name: {name!r}", hint=f"expected {CHECKPOINT_PREFIX} and letters or digits"
        )
    return name


def is_ours(name: str) -> bool:
    """Whether a checkpoint or bitmap of this name was made by Second Site."""
    return _CHECKPOINT.fullmatch(name) is not None


def joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Yield `extents` (ascending, disjoint) with neighbours of one kind joined."""
    last: Extent | None = None
    for extent in extents:
        if extent.length <= 0:
            continue
        if last is not None and last.offset + last.length == extent.offset and last.zero == extent.zero:
            last = Extent(last.offset, last.length + extent.length, last.zero)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def pieces(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut (offset, length) ranges at the multiples of PIECE."""
    for start, length in ranges:
        offset, end = start, start + length
        while offset < end:
            stop = min(end, (offset // PIECE + 1) * PIECE)
            yield offset, stop - offset
            offset = stop
