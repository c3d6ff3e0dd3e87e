"""A Receiver in memory that behaves like a target: for tests of senders, and the model that the contract suite runs.

It keeps the rules of a journal (epochs, chained points, parts by digest) and nothing of its durability.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from blake3 import blake3

from secondsite.errors import (
    CorruptError,
    ForbiddenError,
    NotFoundError,
    OperationRefusedError,
    OutOfSequenceError,
    StaleEpochError,
)
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId
from secondsite.model.manifest import Manifest
from secondsite.model.units import Buffer
from secondsite.ship.protocol import CELL_BYTES, CellRange, LastPoint, PartKind, PartRef, ReplicaStatus


@dataclass(slots=True)
class MemoryReplica:
    """One item of a MemoryReceiver."""

    source: NodeId
    epoch: Epoch
    parts: dict[PartRef, bytes] = field(default_factory=dict)
    initial: list[tuple[DiskKey, tuple[Digest, ...]]] = field(default_factory=list)
    points: list[bytes] = field(default_factory=list)
    cells: dict[DiskKey, bytes] = field(default_factory=dict)


class MemoryReceiver:
    """See the module. Tests look into `items`, `received` (raw bytes of parts that came, also repeated ones) and `begun`."""

    def __init__(self) -> None:
        self.items: dict[ItemId, MemoryReplica] = {}
        self.received = 0
        self.begun = 0
        self.cut = 0
        self._lock = threading.Lock()

    def add(self, item: ItemId, source: NodeId, epoch: Epoch) -> MemoryReplica:
        """Create an empty replica."""
        replica = self.items[item] = MemoryReplica(source, epoch)
        return replica

    def status(self, item: ItemId, peer: NodeId) -> ReplicaStatus:
        """See Receiver."""
        with self._lock:
            replica = self._item(item, peer)
            last = self._last(replica)
            return ReplicaStatus(replica.epoch, "ready" if last else "initial", last)

    def has(self, item: ItemId, peer: NodeId, epoch: Epoch, parts: Sequence[PartRef]) -> set[Digest]:
        """See Receiver."""
        with self._lock:
            replica = self._writable(item, peer, epoch)
            return {part.digest for part in parts if part not in replica.parts}

    @contextmanager
    def incoming(
        self, item: ItemId, peer: NodeId, epoch: Epoch, digest: Digest, kind: PartKind
    ) -> Iterator[MemoryIncoming]:
        """See Receiver."""
        with self._lock:
            self._writable(item, peer, epoch)
            self.begun += 1

        def keep(data: bytes) -> None:
            if blake3(data).hexdigest() != digest:
                raise CorruptError("the part has another digest", digest=digest)
            with self._lock:
                self._writable(item, peer, epoch).parts[PartRef(digest, kind)] = data

        part = MemoryIncoming(keep)
        try:
            yield part
        finally:
            with self._lock:
                self.received += len(part.data)
                self.cut += not part.committed

    def apply_initial(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, digests: Sequence[Digest]
    ) -> None:
        """See Receiver."""
        with self._lock:
            replica = self._writable(item, peer, epoch)
            if replica.points:
                raise OperationRefusedError("the item has a point already")
            known = {part.digest for part in replica.parts}
            for digest in digests:
                if digest not in known:
                    raise NotFoundError("a part has not been received", digest=digest)
            replica.initial.append((disk, tuple(digests)))

    def seal(self, item: ItemId, peer: NodeId, epoch: Epoch, manifest: bytes) -> Digest:
        """See Receiver."""
        point = Manifest.from_bytes(manifest)
        digest = Digest(blake3(manifest).hexdigest())
        with self._lock:
            replica = self._writable(item, peer, epoch)
            last = self._last(replica)
            if last is not None and last.digest == digest:
                return digest
            if (
                point.previous != (last.digest if last else None)
                or point.epoch != epoch
                or point.item != item
            ):
                raise OutOfSequenceError("the point does not follow", last=last.sequence if last else 0)
            known = {part.digest for part in replica.parts}
            for disk in point.disks.values():
                for file in (*disk.logs, *([disk.zeros] if disk.zeros else [])):
                    if file.digest not in known:
                        raise NotFoundError("a part has not been received", digest=file.digest)
            replica.points.append(manifest)
            return digest

    def digests(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, ranges: Sequence[CellRange]
    ) -> Iterator[bytes]:
        """See Receiver."""
        with self._lock:
            cells = self._writable(item, peer, epoch).cells.get(disk)
        if cells is None:
            raise NotFoundError("no such disk", disk=disk)
        for part in ranges:
            piece = cells[part.first * CELL_BYTES : (part.first + part.cells) * CELL_BYTES]
            if len(piece) != part.cells * CELL_BYTES:
                raise NotFoundError("the range is beyond the disk", first=part.first, cells=part.cells)
            yield piece

    def _item(self, item: ItemId, peer: NodeId) -> MemoryReplica:
        replica = self.items.get(item)
        if replica is None:
            raise NotFoundError("no such item", item=item)
        if replica.source != peer:
            raise ForbiddenError("another node is the source of this item", item=item)
        return replica

    def _writable(self, item: ItemId, peer: NodeId, epoch: Epoch) -> MemoryReplica:
        replica = self._item(item, peer)
        if epoch != replica.epoch:
            raise StaleEpochError("the epoch is not the item's", epoch=epoch, current=replica.epoch)
        return replica

    def _last(self, replica: MemoryReplica) -> LastPoint | None:
        if not replica.points:
            return None
        raw = replica.points[-1]
        point = Manifest.from_bytes(raw)
        return LastPoint(point.sequence, Digest(blake3(raw).hexdigest()), point.epoch, point.time)


class MemoryIncoming:
    """See Incoming."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._keep = keep
        self.data = bytearray()
        self.committed = False

    def write(self, data: Buffer) -> None:
        """See Incoming."""
        self.data += data

    def commit(self) -> None:
        """See Incoming."""
        self._keep(bytes(self.data))
        self.committed = True
