"""Disks that were given to a protected machine after it was protected: they are not replicated, and somebody should know.

What stands on the machine when it is protected is covered or was excluded on purpose; both are in the record. Whatever is
there beyond that was added since. Replication goes on with the disks that it has: the replica comes up without the new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from secondsite.fabric.port import VmInfo
from secondsite.model.ids import DiskKey, ItemId
from secondsite.node.events import NodeEvents
from secondsite.node.records import ItemStore, Role

CODE: Final = "disk-unprotected"
_HINT: Final = (
    "to replicate it, disable the item and protect the machine again; the replica would come up without it"
)


def other_disks(vm: VmInfo, protected: Iterable[DiskKey]) -> tuple[DiskKey, ...]:
    """Return the disks of a machine that are none of those: what is excluded if it is protected now."""
    own = set(protected)
    return tuple(sorted(disk.key for disk in vm.disks if disk.device == "disk" and disk.key not in own))


class Unprotected:
    """Remembers what the last look found, and tells of each disk once while this process lives."""

    def __init__(self, items: ItemStore, events: NodeEvents) -> None:
        self._items = items
        self._events = events
        self._found: dict[ItemId, tuple[DiskKey, ...]] = {}
        self._told: set[tuple[ItemId, DiskKey]] = set()

    def look(self, machines: Iterable[VmInfo]) -> None:
        """Compare the machines with what was there when they were protected."""
        by_uuid = {vm.uuid: vm for vm in machines}
        found: dict[ItemId, tuple[DiskKey, ...]] = {}
        for record in self._items.all():
            vm = by_uuid.get(record.vm)
            if record.role is not Role.SOURCE or vm is None:
                continue
            others = other_disks(vm, record.disks)
            if record.others is None:  # of a version that did not keep them, or the other side's until now
                self._items.change(record.item, others=others)
                continue
            new = tuple(disk for disk in others if disk not in record.others)
            if new:
                found[record.item] = new
                for disk in new:
                    if (record.item, disk) not in self._told:
                        self._told.add((record.item, disk))
                        self._events.tell(record.item, CODE, f"{_message(disk)} of {record.name}: {_HINT}")
        self._found = found

    def warnings(self, item: ItemId) -> list[dict[str, Any]]:
        """Return what a report says of the item's new disks."""
        return [
            {"code": CODE, "message": _message(disk), "hint": _HINT, "disk": disk}
            for disk in self._found.get(item, ())
        ]


def _message(disk: DiskKey) -> str:
    return f"disk {disk} is not protected"
