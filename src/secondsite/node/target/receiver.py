"""What the listener may do: the ship protocol's `Receiver`, over this node's journals.

Two fences stand here: the peer must be the item's source, as the service told us, and the epoch must be the item's.
The journal checks the epoch a second time, on its own disk.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import numpy as np

from secondsite.blocks import DigestTable
from secondsite.errors import ForbiddenError, StaleEpochError
from secondsite.journal import Incoming, Journal
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId
from secondsite.model.units import BLOCK
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.target.journals import Journals
from secondsite.ship.protocol import CellRange, LastPoint, PartKind, PartRef, ReplicaStatus

_CELLS: Final = 1 << 17


class JournalReceiver:
    """See the module's docstring."""

    def __init__(self, items: ItemStore, journals: Journals) -> None:
        self._items = items
        self._journals = journals
        self._tables = threading.Lock()

    def status(self, item: ItemId, peer: NodeId) -> ReplicaStatus:
        """Return where the replica stands."""
        _, journal = self._admit(item, peer, None)
        status = journal.status()
        last = status.last
        return ReplicaStatus(
            epoch=status.epoch,
            state=status.state,
            last=None if last is None else LastPoint(last.sequence, last.digest, last.epoch, last.time),
        )

    def has(self, item: ItemId, peer: NodeId, epoch: Epoch, parts: Sequence[PartRef]) -> set[Digest]:
        """Return the digests of those parts that are missing."""
        _, journal = self._admit(item, peer, epoch)
        return {part.digest for part in parts if not journal.has_file(part.digest, part.kind.value)}

    def incoming(
        self, item: ItemId, peer: NodeId, epoch: Epoch, digest: Digest, kind: PartKind
    ) -> AbstractContextManager[Incoming]:
        """Take a part."""
        _, journal = self._admit(item, peer, epoch)
        return journal.receive(digest, kind.value)

    def apply_initial(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, digests: Sequence[Digest]
    ) -> None:
        """Fold received parts into the base of an item without a point."""
        _, journal = self._admit(item, peer, epoch)
        journal.apply_initial(epoch, disk, digests)

    def seal(self, item: ItemId, peer: NodeId, epoch: Epoch, manifest: bytes) -> Digest:
        """Make the point of these exact bytes exist."""
        # The journal compares the epoch again under its own lock, so a failover comes before this point or after it.
        _, journal = self._admit(item, peer, epoch)
        return journal.seal(epoch, manifest)

    def digests(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, ranges: Sequence[CellRange]
    ) -> Iterator[bytes]:
        """Yield the cells of these ranges at the last point."""
        record, journal = self._admit(item, peer, epoch)
        path = self._table_of_last_point(record, journal, disk)
        return _cells(path, record.key, ranges)

    def _table_of_last_point(self, record: ItemRecord, journal: Journal, disk: DiskKey) -> Path:
        last = journal.status().last
        folder = self._items.folder(record.item) / "asked"
        folder.mkdir(exist_ok=True)
        if last is None:
            # The base of an initial replication changes as parts arrive: made anew each time that it is asked for.
            path = folder / f"{disk}-base-{secrets.token_hex(8)}.tbl"
            with self._tables:
                for old in folder.glob(f"{disk}-*"):
                    old.unlink(missing_ok=True)
                journal.initial_table(disk, path)
            return path
        path = folder / f"{disk}-{last.digest}.tbl"
        with self._tables:
            if not path.exists():
                for old in folder.glob(f"{disk}-*"):
                    old.unlink(missing_ok=True)
                with journal.view(last.sequence, purpose="digests") as view:
                    journal.digests_at(view, disk, path)
        return path

    def _admit(self, item: ItemId, peer: NodeId, epoch: Epoch | None) -> tuple[ItemRecord, Journal]:
        record = self._items.find(item)
        # A stranger learns nothing, not even whether the item exists.
        if record is None or record.peer is None or record.peer.node != peer:
            raise ForbiddenError(f"{peer} is not the source of an item {item} here", item=item)
        if record.role is not Role.TARGET:
            raise StaleEpochError(
                f"this node is {record.role.value} for {record.name}; it takes no points",
                item=item,
                role=record.role.value,
                current=record.epoch,
            )
        if epoch is not None and epoch != record.epoch:
            raise StaleEpochError(
                f"epoch {epoch} of {record.name} is not {record.epoch}",
                item=item,
                role=record.role.value,
                epoch=epoch,
                current=record.epoch,
            )
        return record, self._journals.get(item)


def _cells(path: Path, key: bytes, ranges: Sequence[CellRange]) -> Iterator[bytes]:
    with DigestTable.open(path, key) as table:
        for cells in ranges:
            for first in range(cells.first, cells.first + cells.cells, _CELLS):
                count = min(_CELLS, cells.first + cells.cells - first)
                # A disk that has grown at the source ends earlier here: there is nothing behind, which is zeros.
                there = max(0, min(count, -(-table.disk_size // BLOCK) - first))
                found = table.get(first, there) if there else np.empty(0, np.uint64)
                yield np.ascontiguousarray(found, dtype="<u8").tobytes() + bytes(8 * (count - there))
