"""What a node tells the service about itself: inventory, items, points. Facts of now, made anew for each report."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import structlog

from secondsite.errors import Retry, SecondSiteError
from secondsite.fabric.inventory import Inventory
from secondsite.fabric.port import Fabric
from secondsite.journal import PointInfo
from secondsite.model.ids import ItemId
from secondsite.model.manifest import parse_time
from secondsite.node.events import NodeEvents
from secondsite.node.point_lists import PointLists
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.source.hops import hops
from secondsite.node.source.replicator import Replicators
from secondsite.node.source.unprotected import Unprotected
from secondsite.node.target.journals import Journals
from secondsite.node.target.space import Space

log = structlog.get_logger(__name__)


class Reporter:
    """Makes reports. What they tell of an item's points, so that the service knows them all and a report stays small: `point_lists`."""

    def __init__(
        self,
        items: ItemStore,
        replicators: Replicators,
        journals: Journals,
        fabric: Fabric,
        clock: Callable[[], datetime],
        events: NodeEvents | None = None,
    ) -> None:
        self._items = items
        self._replicators = replicators
        self._journals = journals
        self._fabric = fabric
        self._clock = clock
        self._events = events or NodeEvents()
        self._unprotected = Unprotected(items, self._events)
        self._lists = PointLists()
        self._run, self._number = uuid.uuid4().hex, 0
        self.space: Space | None = None
        """Who measures the journals, if this node keeps any."""

    def make(self, with_inventory: bool) -> Mapping[str, Any]:
        """Return the report's body."""
        inventory = self._look() if with_inventory else None
        self._number += 1
        body: dict[str, Any] = {
            "report": {"run": self._run, "number": self._number},
            "items": [],
            "points": {},
            "events": self._events.take(),
        }
        keepers = []
        for record in self._items.all():
            body["items"].append(self._item(record))
            if record.role is Role.TARGET or (record.role is Role.ACTIVE and record.failover is not None):
                keepers.append(record.item)
        for item in self._lists.begin(keepers):
            points = self._points(item)
            told = None if points is None else self._lists.tell(item, points, self._clock())
            if told is not None:
                body["points"][item] = told
        if inventory is not None:
            body["inventory"] = inventory.to_dict()
        return body

    def _look(self) -> Inventory | None:
        try:
            inventory = self._fabric.inventory()
        except SecondSiteError as error:
            log.warning("no inventory", error=error.to_dict())
            return None
        self._unprotected.look(inventory.vms)
        return inventory

    def _item(self, record: ItemRecord) -> dict[str, Any]:
        report: dict[str, Any] = {
            "item": record.item,
            "epoch": record.epoch,
            "role": record.role.value,
            "phase": "idle",
            "sequence": None,
            "point_time": None,
            "lag_s": None,
            "progress": None,
            "error": None,
            "counters": dict(record.counters),
            "test": None if record.test is None else {"name": record.test.name, "vm": record.test.vm},
        }
        if record.role is Role.SOURCE:
            report["paused"] = record.paused
            report["warnings"] = self._unprotected.warnings(record.item)
            replicator = self._replicators.find(record.item)
            if replicator is not None:
                report.update(replicator.status())
                report["hops"] = hops(report["progress"], self._items.folder(record.item) / "spool")
        journal = None if self.space is None else self.space.find(record.item)
        if journal is not None:
            report["journal"] = journal
        report.update(standing_still(record))
        if record.acked is not None:
            report["sequence"] = record.acked.sequence
            report["point_time"] = record.acked.time
            report["lag_s"] = round((self._clock() - parse_time(record.acked.time)).total_seconds(), 3)
        return report

    def _points(self, item: ItemId) -> list[PointInfo] | None:
        try:
            return self._journals.get(item).points() if self._journals.exists(item) else []
        except (SecondSiteError, OSError) as error:
            log.warning("points unreadable", item=item, error=str(error))
            return None

    def forget_sent(self) -> None:
        """Tell at the next report again what the last one told: it may not have arrived. Telling it twice is harmless."""
        self._lists.lost()
        self._events.put_back()


def standing_still(record: ItemRecord) -> dict[str, Any]:
    """Return what a report says of a source that replicates nothing because it may not, or a machine that may not run."""
    if record.role not in (Role.SOURCE, Role.ACTIVE):
        return {}
    if record.held is not None:
        error = HeldError(
            f"{record.name} is not run here after its host's boot: {record.held.reason}",
            hint="it goes on by itself when the other side or the service answers; or decide here: secondsite node start-held",
            item=record.item,
        )
        return {"phase": "held", "error": error.to_dict()}
    paused = record.paused and record.role is Role.SOURCE
    return {"phase": "paused", "progress": None, "error": None} if paused else {}


class HeldError(SecondSiteError):
    """Nobody has confirmed since the host's boot that this side may run the machine."""

    code = "held"
    retry = Retry.LATER
