"""What a node tells the service about itself: inventory, items, points. Facts of now, made anew for each report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from secondsite.errors import Retry, SecondSiteError
from secondsite.fabric.inventory import Inventory
from secondsite.fabric.port import Fabric
from secondsite.journal import PointInfo
from secondsite.model.ids import Digest, ItemId, Sequence
from secondsite.model.manifest import format_time, parse_time
from secondsite.node.events import NodeEvents
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.source.hops import hops
from secondsite.node.source.replicator import Replicators
from secondsite.node.source.unprotected import Unprotected
from secondsite.node.target.journals import Journals
from secondsite.node.target.space import Space

WHOLE_EVERY: Final = timedelta(hours=12)
"""Rarely: a list of 2,880 points keeps the service busy for 0.1 s. So that a service whose database is an older copy than it was knows all points again."""
WHOLE_AGAIN: Final = timedelta(minutes=1)
"""After the first whole list: the service takes points only from the node that it knows to keep the journal, and learns that of a reversal a moment later."""
WHOLE_POINTS: Final = 3000
"""Whole lists in a report are begun until they have so many points."""

log = structlog.get_logger(__name__)


class Reporter:
    """Makes reports. Of an item's points they tell what is new and the numbers of what went since the last report that arrived.

    The whole list is sent when it was never sent, a minute later, and every twelve hours, and of few items at a time: a node of 100 items holds some
    300,000 points. Until then an item whose list was never sent has its turn to come.
    """

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
        self._lock = threading.Lock()
        self._sent: dict[ItemId, dict[Digest, Sequence]] = {}  # what the service knows
        self._told: dict[ItemId, dict[Digest, Sequence]] = {}  # what it knows if the report under way arrives
        self._whole_at: dict[ItemId, datetime] = {}
        self.space: Space | None = None
        """Who measures the journals, if this node keeps any."""

    def make(self, with_inventory: bool) -> Mapping[str, Any]:
        """Return the report's body."""
        inventory = self._look() if with_inventory else None
        body: dict[str, Any] = {"items": [], "points": {}, "events": self._events.take()}
        with self._lock:
            self._sent.update(self._told)
            self._told.clear()
        budget = WHOLE_POINTS
        for record in self._items.all():
            body["items"].append(self._item(record))
            if record.role is Role.TARGET or (record.role is Role.ACTIVE and record.failover is not None):
                points = self._points(record, budget)
                if points is not None:
                    body["points"][record.item] = points
                    budget -= len(points["points"]) if points["complete"] else 0
            else:
                self._forget(record.item)
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

    def _points(self, record: ItemRecord, budget: int) -> dict[str, Any] | None:
        """Return what changed since the last report that arrived, or all points if it is time to and the budget is not used up.

        A point that was merged into its successor went under its own number; the successor is new under another digest.
        """
        try:
            points = self._journals.get(record.item).points() if self._journals.exists(record.item) else []
        except (SecondSiteError, OSError) as error:
            log.warning("points unreadable", item=record.item, error=str(error))
            return None
        now = {point.digest: point.sequence for point in points}
        moment = self._clock()
        with self._lock:
            before = self._sent.get(record.item)
            due = before is None or moment >= self._whole_at[record.item]
            if due and budget > 0:
                self._told[record.item] = now
                self._whole_at[record.item] = moment + (WHOLE_AGAIN if before is None else WHOLE_EVERY)
                return {"points": [describe_point(point) for point in points], "complete": True}
            if before is None or now == before:
                return None
            self._told[record.item] = now
        new = [describe_point(point) for point in points if point.digest not in before]
        return {"points": new, "gone": sorted(set(before.values()) - set(now.values())), "complete": False}

    def _forget(self, item: ItemId) -> None:
        """The item has no points here (any more): those of its next journal are told from the beginning."""
        with self._lock:
            self._sent.pop(item, None)
            self._whole_at.pop(item, None)

    def forget_sent(self) -> None:
        """Tell at the next report again what the last one told: it may not have arrived. Telling it twice is harmless."""
        with self._lock:
            self._told.clear()
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


def describe_point(point: PointInfo) -> dict[str, Any]:
    """Return a point as reports, the API and the stand-alone commands show it."""
    return {
        "sequence": point.sequence,
        "epoch": point.epoch,
        "time": format_time(point.time),
        "consistency": point.consistency.value,
        "kind": point.kind.value,
        "digest": point.digest,
        "changed": point.changed,
        "stored": point.stored,
        "group": point.group,
    }
