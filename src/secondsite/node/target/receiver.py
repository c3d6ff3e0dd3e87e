"""What the listener may do: the ship protocol's `Receiver`, over this node's journals.

Two fences stand here: the peer must be the item's source, as the service told us, and the epoch must be the item's.
The journal checks the epoch a second time, on its own disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from secondsite.blocks import DigestTable
from secondsite.errors import ForbiddenError, StaleEpochError
from secondsite.journal import Incoming, Journal, JournalStatus
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.target.journals import Journals

_ = (Iterable, Iterator, Sequence, DigestTable, Digest, DiskKey, Incoming, JournalStatus)


class JournalReceiver:
    """See the module's docstring."""

    def __init__(self, items: ItemStore, journals: Journals) -> None:
        self._items = items
        self._journals = journals

    def _admit(self, item: ItemId, peer: NodeId, epoch: Epoch | None) -> tuple[ItemRecord, Journal]:
        record = self._items.find(item)
        # A stranger learns nothing, not even whether the item exists.
        if record is None or record.peer is None or record.peer.node != peer:
            raise ForbiddenError(f"{peer} is not the source of an item {item} here", item=item)
        if record.role is not Role.TARGET:
            raise StaleEpochError(
                f"this node is {record.role.value} for {record.name}; it takes no points",
                item=item,
                current=record.epoch,
            )
        if epoch is not None and epoch != record.epoch:
            raise StaleEpochError(
                f"epoch {epoch} of {record.name} is not {record.epoch}",
                item=item,
                epoch=epoch,
                current=record.epoch,
            )
        return record, self._journals.get(item)
