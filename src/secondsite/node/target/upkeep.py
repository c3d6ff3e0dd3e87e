"""What a target does by itself: retention, garbage, views that died, machines that paused for them, unfinished pulls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from secondsite.errors import SecondSiteError
from secondsite.journal import Journal
from secondsite.model.ids import ItemId
from secondsite.model.policy import Policy
from secondsite.model.retention import PointAge, points_to_keep
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.target.journals import Journals
from secondsite.node.target.replicas import Replicas
from secondsite.node.target.settler import Settler
from secondsite.node.target.sharing import complete_cuts

TEND_S: Final = 1.0
MAINTAIN_S: Final = 30.0
HELD_MAX: Final = 512
"""So many points that retention has given up may wait behind a pinned one before they are merged."""

log = structlog.get_logger(__name__)


class Upkeep:
    """Two threads: one looks after running replicas every second, one after journals every half minute."""

    def __init__(
        self,
        items: ItemStore,
        journals: Journals,
        replicas: Replicas,
        settler: Settler,
        clock: Callable[[], datetime],
    ) -> None:
        self._items = items
        self._journals = journals
        self._replicas = replicas
        self._settler = settler
        self._clock = clock
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._complained: dict[tuple[ItemId, str], float] = {}

    def start(self) -> None:
        """Begin."""
        # A fold may take long and the journal guards itself: a failover does not wait for it.
        loops = (("tend", self.tend, TEND_S, True), ("maintain", self.maintain, MAINTAIN_S, False))
        for name, act, every_s, exclusive in loops:
            thread = threading.Thread(
                target=self._loop, args=(name, act, every_s, exclusive), name=name, daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop; a fold that runs is finished first."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def tend(self, record: ItemRecord) -> None:
        """Look after the item's running replicas."""
        if record.test is not None or record.failover is not None:
            self._replicas.tend(record.item)
        if record.role is Role.ACTIVE and record.failover is not None and record.failover.started:
            self._settler.start(record.item)

    def maintain(self, record: ItemRecord) -> None:
        """Apply the item's retention; not while a failover is not committed: any point may still be asked for.

        Between two failovers of a change of the point, too: until a point of the item's epoch has arrived.
        """
        if record.role is not Role.TARGET or not self._journals.exists(record.item):
            return
        journal = self._journals.get(record.item)
        last = journal.status().last
        if last is None or last.epoch == record.epoch:
            others = (
                self._journals.get(other.item).points()
                for other in self._items.all()
                if other.item != record.item
                and other.role is Role.TARGET
                and self._journals.exists(other.item)
            )
            shared = complete_cuts(journal.points(), others)
            if journal.maintain(record.policy, self._clock(), shared=shared).held_by is not None:
                self._merge_held(journal, record.policy)

    def _merge_held(self, journal: Journal, policy: Policy) -> None:
        """Somebody keeps an old point, for long if it is a reversal's: the points after it that are given up cannot be
        folded, so now and then they are merged into the last of them. All of them are rewritten, so not at every round.
        """
        points = journal.points()
        ages = [PointAge(point.sequence, point.time, point.consistency) for point in points]
        first = points_to_keep(ages, replace(policy, keep_all_hours=None), self._clock())[0]
        pinned = {pin.sequence for pin in journal.pins()}
        due = [
            point.sequence for point in points[1:] if point.sequence < first and point.sequence not in pinned
        ]
        if len(due) >= HELD_MAX:
            journal.thin(due[:-1])

    def _loop(
        self,
        name: str,
        act: Callable[[ItemRecord], None],
        every_s: float,
        exclusive: bool,
    ) -> None:
        while not self._stop.wait(every_s):
            for record in self._items.all():
                if self._stop.is_set():
                    return
                # A command that changes the item goes first; there is always a next round.
                lock = self._items.lock(record.item) if exclusive else threading.RLock()
                if not lock.acquire(blocking=False):
                    continue
                try:
                    current = self._items.find(record.item)
                    if current is not None:
                        act(current)
                except SecondSiteError as error:
                    self._complain(name, record, error)
                except Exception:
                    log.exception("upkeep broke", what=name, item=record.item)
                finally:
                    lock.release()

    def _complain(self, name: str, record: ItemRecord, error: SecondSiteError) -> None:
        """Log once a minute per item and kind: the cause usually stays for a while."""
        now = time.monotonic()
        if now - self._complained.get((record.item, name), -60.0) >= 60.0:
            self._complained[record.item, name] = now
            log.warning("upkeep failed", what=name, item=record.item, error=error.to_dict())
