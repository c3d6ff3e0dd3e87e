"""What reports tell of recovery points, so that the service's list of each item becomes the journal's and stays it.

An item's list is told from its newest point down, in slices of at most WHOLE_POINTS. A slice is all that the journal holds between two
sequences: what else the service knows there is forgotten. From where the slices have come to (`floor`) upwards, reports tell
what is new and the numbers of what went. A list is told so when it was never told, once more a minute later, and every twelve hours.

Promises:

- What a report told counts once it has arrived. What a lost one told, the service may know or not: it is told again, or as gone if it went.
- A report stays far below the size that the service takes, however long the lists are and however long the service was away. What
  one report leaves out the next ones tell; each item has its turn, and its newest few changes go out with every report.

It reads no journal, and keeps nothing over a restart: all lists are told anew then.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from secondsite.journal import PointInfo
from secondsite.model.ids import Digest, ItemId, Sequence
from secondsite.model.manifest import format_time

WHOLE_EVERY: Final = timedelta(hours=12)
"""Rarely: a list of 2,880 points keeps the service busy for 0.1 s. So that a service whose database is an older copy than it was knows all points again."""
WHOLE_AGAIN: Final = timedelta(minutes=1)
"""After the first whole list: the service takes points only from the node that it knows to keep the journal, and learns of a reversal a moment later."""
WHOLE_POINTS: Final = 3000
"""Of an item, a report tells at most so many points (some 250 bytes each) and as many numbers of what went. Items are begun until together they have so many."""
LEAST_POINTS: Final = 20
"""So many points that are new, and numbers of what went, each item may tell in every report: people wait for the newest."""
TOP: Final = 1 << 63
"""Above every sequence."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the service knows of an item's points. `floor`: from this sequence up its list is the journal's but for `doubtful` and what changed since."""

    points: Mapping[Sequence, Digest]
    doubtful: frozenset[Sequence]
    """Lost reports told something of these."""
    floor: int
    whole_at: datetime
    """When the whole list is due again."""


class PointLists:
    """See the module's docstring. Thread-safe; reports are made one after the other: `begin`, then `tell` for each item."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[ItemId, _Known] = {}
        self._told: dict[ItemId, _Known] = {}  # what is known if the report under way arrives
        self._turn = 0
        self._room = 0

    def begin(self, items: Collection[ItemId]) -> list[ItemId]:
        """Begin a report on these items; returns them in the order in which to tell them. The report before has arrived unless `lost` was called.

        Others are forgotten: they have no points here (any more), and those of their next journal are told from the beginning.
        """
        kept = frozenset(items)
        with self._lock:
            self._known.update(self._told)
            self._told.clear()
            self._known = {item: known for item, known in self._known.items() if item in kept}
            self._room = WHOLE_POINTS
            first = self._turn % max(1, len(items))
            self._turn += 1
        ordered = list(items)
        return ordered[first:] + ordered[:first]

    def tell(self, item: ItemId, points: Ordered[PointInfo], moment: datetime) -> dict[str, Any] | None:
        """Return what this report tells of an item whose journal holds these points (oldest first), or None if it tells nothing."""
        with self._lock:
            now = {point.sequence: point.digest for point in points}
            before = self._begun(item, moment)
            if before is None or (before.floor == 0 and not before.doubtful and before.points == now):
                return None
            limit = WHOLE_POINTS if self._room > 0 else LEAST_POINTS
            whole, covered = _slice(points, before.floor) if self._room > 0 else ([], range(0))
            new = [
                point
                for point in points
                if point.sequence >= before.floor and before.points.get(point.sequence) != point.digest
            ]
            # A point that was merged into its successor went under its own number; the successor is new under another digest.
            # The newest first, if not all can be told: what is left out is still not known at the next report.
            told = whole + new[-limit:]
            gone = sorted((before.points.keys() | before.doubtful) - now.keys())[-limit:]
            if not (told or gone or covered):
                return None
            self._told[item] = _after(before, told, gone, covered.start if covered else before.floor)
            self._room -= len(told) + len(gone)
        entry: dict[str, Any] = {"points": [describe_point(point) for point in told], "gone": gone}
        return entry | _bounds(covered)

    def lost(self) -> None:
        """The report that was made last may not have arrived; or it may, and only its answer was lost."""
        with self._lock:
            for item, told in self._told.items():
                before = self._known.get(item)
                if before is None:
                    continue
                known, floor = before.points, before.floor
                doubtful = before.doubtful | {
                    sequence
                    for sequence, digest in told.points.items()
                    if sequence >= floor and known.get(sequence) != digest
                }
                if len(doubtful) > WHOLE_POINTS:
                    # The service was away for long: the list is told anew, which takes less.
                    del self._known[item]
                else:
                    self._known[item] = replace(before, doubtful=doubtful)
            self._told.clear()

    def _begun(self, item: ItemId, moment: datetime) -> _Known | None:
        """Return what is known; as of the begin of a whole list if one is due and this report has room. None: it was never told, and has its turn to come."""
        before = self._known.get(item)
        if self._room <= 0:
            return before
        if before is None:
            return _Known({}, frozenset(), TOP, moment + WHOLE_AGAIN)
        if before.floor == 0 and moment >= before.whole_at:
            return replace(before, floor=TOP, whole_at=moment + WHOLE_EVERY)
        return before


def _slice(points: Ordered[PointInfo], floor: int) -> tuple[list[PointInfo], range]:
    """Return the next points below the floor, and all the sequences that they stand for; no sequences if the whole list was told."""
    below = [point for point in points if point.sequence < floor]
    some = below[-WHOLE_POINTS:]
    return some, range(0 if len(some) == len(below) else some[0].sequence, floor)


def _after(before: _Known, told: list[PointInfo], gone: list[Sequence], floor: int) -> _Known:
    named = {*gone, *(point.sequence for point in told)}
    points = {sequence: digest for sequence, digest in before.points.items() if sequence not in named}
    points |= {point.sequence: point.digest for point in told}
    return _Known(points, before.doubtful - named, floor, before.whole_at)


def _bounds(covered: range) -> dict[str, Any]:
    """Return how a report says that its list is whole, and between which sequences if not everywhere."""
    bounds: dict[str, Any] = {"complete": bool(covered)}
    if covered and covered.start > 0:
        bounds["from"] = covered.start
    if covered and covered.stop < TOP:
        bounds["to"] = covered.stop - 1
    return bounds


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
