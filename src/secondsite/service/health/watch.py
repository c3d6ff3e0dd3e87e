"""The thread that keeps the list of what is wrong now and gathers the items' figures, until it is closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from secondsite.service.context import Context
from secondsite.service.health.keeper import compare, put
from secondsite.service.health.metering import Metering
from secondsite.service.pace import PORTION, Pace
from secondsite.service.store import clouds, items, samples
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item
from secondsite.service.store.samples import Meter, Sample

log = logging.getLogger("secondsite.service")

EVERY_S: Final = 5.0
SUMMED_AT_ONCE: Final = 5
"""Items of which the minutes of an hour are read between two rests."""


@dataclass(slots=True)
class HealthWatch:
    """Looks every few seconds. What it meets is logged, and it looks again: a broken look must not end the watch."""

    ctx: Context
    every_s: float = EVERY_S
    _metering: Metering | None = field(default=None, init=False)
    _hour: datetime | None = field(default=None, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self._stop.wait)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._loop, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; returns when the thread has. The minute that has begun is kept."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._metering is None:
            return
        try:
            self._write(*self._metering.close())
        except Exception:
            # The database may be what made the service end; the counters at the sources bring it in again.
            log.exception("the minute that had begun could not be written")

    def look(self) -> None:
        """Look once. The items are read once for the figures and for what is wrong; it rests in between."""
        now = self.ctx.clock()
        with self.ctx.store.reading() as tx:
            listed = items.listed(tx, pace=self._pace)
            complete, meters = self._meter(tx, listed, now)
            found = None if complete else compare(self.ctx, tx, listed, self._pace)
        if found is None:
            # What is wrong depends on the figures of the minute that is over: after they were written.
            self._write(complete, meters)
            self._sum_up(now)
            with self.ctx.store.reading() as tx:
                found = compare(self.ctx, tx, items.listed(tx, pace=self._pace), self._pace)
        else:
            self._sum_up(now)
        put(self.ctx, found, self._pace)

    def _meter(
        self, tx: Transaction, listed: Sequence[Item], now: datetime
    ) -> tuple[Sequence[Sample], Sequence[Meter]]:
        if self._metering is None:
            self._metering = Metering(samples.find_meters(tx))
        frequencies = {policy.id: policy.policy.copy_frequency_s for policy in clouds.list_policies(tx)}
        by_mapping = {mapping.id: frequencies[mapping.policy_id] for mapping in clouds.list_mappings(tx)}
        pairs = ((item, by_mapping[item.cloud_mapping_id]) for item in self._pace.through(listed))
        return self._metering.look(pairs, now)

    def _sum_up(self, now: datetime) -> None:
        hour = now.replace(minute=0, second=0, microsecond=0)
        if hour == self._hour:
            return
        with self.ctx.store.reading() as tx:
            missing = samples.unsummed(tx, now)
        for begin, wanted in missing:
            for some in self._pace.portions(wanted, SUMMED_AT_ONCE):
                if self._stop.is_set():
                    return  # what is left is summed up by whoever is started next
                # Read apart, beside other writers: nobody else writes figures.
                with self.ctx.store.reading() as tx:
                    hours = samples.hours_of(tx, begin, some)
                if hours:
                    with self.ctx.store.transaction() as tx:
                        samples.add_all(tx, hours)
        with self.ctx.store.transaction() as tx:
            samples.prune(tx, now)
        self._hour = hour

    def _write(self, complete: Sequence[Sample], meters: Sequence[Meter]) -> None:
        """Write samples, each with its meter. Some at a time: all of 1,000 items kept every other writer waiting for a second."""
        both = list(zip(complete, meters, strict=True))
        for some in self._pace.portions(both, PORTION):
            with self.ctx.store.transaction() as tx:
                samples.add_all(tx, [sample for sample, _ in some])
                samples.put_meters(tx, [meter for _, meter in some])

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self.look()
            except Exception:
                log.exception("health could not be looked at; it is tried again")
