"""How much space journals take, how fast their disk fills, and what retention has not folded yet.

Measured every half minute in a thread of its own; reports and metrics read what was measured last. The runway is the free space of
the file system that holds the journals, divided by how fast its use grew over the last hours; None while it does not
grow or too little time was watched. It begins anew with the process.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog

from secondsite.errors import SecondSiteError
from secondsite.journal import PointInfo
from secondsite.model.ids import ItemId
from secondsite.model.policy import Policy
from secondsite.model.retention import PointAge, points_to_keep
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.target.journals import Journals

MEASURE_S: Final = 30.0
WATCHED_S: Final = 6 * 3600.0
WATCHED_MIN_S: Final = 600.0
"""Less than ten minutes say nothing about hours."""
_SAMPLE_S: Final = 60.0

log = structlog.get_logger(__name__)


class Growth:
    """How fast a quantity grew over the last hours. Not thread-safe."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, value: int) -> None:
        """Take in the value of now; one a minute is kept."""
        now = self._monotonic()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, value))
        while len(self._samples) > 1 and self._samples[0][0] < now - WATCHED_S:
            self._samples.popleft()

    def rate(self, value: int) -> float | None:
        """Return the growth per second up to the value of now, or None while too little time was watched."""
        if not self._samples:
            return None
        then, first = self._samples[0]
        watched = self._monotonic() - then
        return None if watched < WATCHED_MIN_S else (value - first) / watched


class Space:
    """See the module's docstring. Thread-safe."""

    def __init__(
        self,
        items: ItemStore,
        journals: Journals,
        storage: Path,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._items = items
        self._journals = journals
        self._storage = storage
        self._clock = clock
        self._monotonic = monotonic
        self._growth = Growth(monotonic)
        self._lock = threading.Lock()
        self._measured: dict[ItemId, dict[str, Any]] = {}
        self._folding: dict[ItemId, tuple[float, int]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._loop, name="space", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; returns when the thread has."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def find(self, item: ItemId) -> dict[str, Any] | None:
        """Return what was measured last of the item's journal: bytes, points, free, total, runway_s, to_fold."""
        with self._lock:
            found = self._measured.get(item)
            return None if found is None else dict(found)

    def measure(self) -> None:
        """Measure every journal once."""
        disk = self._disk()
        measured = {}
        for record in self._items.all():
            if record.role not in {Role.TARGET, Role.ACTIVE}:
                continue
            try:
                if self._journals.exists(record.item):
                    measured[record.item] = self._journal(record) | disk
            except (SecondSiteError, OSError) as error:
                log.warning("a journal's space could not be measured", item=record.item, error=str(error))
        with self._lock:
            self._measured = measured

    def _loop(self) -> None:
        while True:
            try:
                self.measure()
            except Exception:
                log.exception("space could not be measured")
            if self._stop.wait(MEASURE_S):
                return

    def _disk(self) -> dict[str, Any]:
        found = os.statvfs(self._storage)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self._growth.note(used)
        rate = self._growth.rate(used)
        runway = free / rate if rate is not None and rate > 0 else None
        return {
            "free": free,
            "total": total,
            "growth": None if rate is None else round(rate, 1),
            "runway_s": None if runway is None else round(runway),
        }

    def _journal(self, record: ItemRecord) -> dict[str, Any]:
        journal = self._journals.get(record.item)
        points = journal.points()
        late = to_fold(points, record.policy, self._clock())
        waiting = sum(point.stored for point in late)
        return {
            "bytes": sum(point.stored for point in points) + _allocated(journal.path / "base"),
            "points": len(points),
            "to_fold": {
                "points": len(late),
                "bytes": waiting,
                "eta_s": self._fold_eta(record.item, waiting),
            },
        }

    def _fold_eta(self, item: ItemId, waiting: int) -> float | None:
        """Return when the fold is through at the speed at which it got less since the last look; None if it did not."""
        now = self._monotonic()
        before = self._folding.get(item)
        self._folding[item] = now, waiting
        if waiting == 0:
            return 0.0
        if before is None or before[1] <= waiting or now <= before[0]:
            return None
        return round(waiting * (now - before[0]) / (before[1] - waiting), 1)


def to_fold(points: list[PointInfo], policy: Policy, now: datetime) -> list[PointInfo]:
    """Return the points whose changes the policy wants folded into the base or merged, and which still stand for themselves."""
    ages = [PointAge(point.sequence, point.time, point.consistency) for point in points]
    kept = points_to_keep(ages, policy, now)
    if not kept:
        return []
    stay = set(kept[1:])
    return [point for point in points[1:] if point.sequence not in stay]


def _allocated(folder: Path) -> int:
    """Return the bytes that the files of a folder take on their disk: a base is sparse."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    except FileNotFoundError:
        return 0
