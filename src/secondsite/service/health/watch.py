"""The thread that keeps the list of what is wrong now and gathers the items' figures, until it is closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from secondsite.service.context import Context
from secondsite.service.health.keeper import keep
from secondsite.service.health.metering import Metering
from secondsite.service.store import clouds, items, samples
from secondsite.service.store.samples import Meter, Sample

log = logging.getLogger("secondsite.service")

EVERY_S: Final = 5.0


@dataclass(slots=True)
class HealthWatch:
    """Looks every few seconds. What it meets is logged, and it looks again: a broken look must not end the watch."""

    ctx: Context
    every_s: float = EVERY_S
    _metering: Metering | None = field(default=None, init=False)
    _hour: datetime | None = field(default=None, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

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
        """Look once."""
        self._meter()
        keep(self.ctx)

    def _meter(self) -> None:
        now = self.ctx.clock()
        with self.ctx.store.reading() as tx:
            if self._metering is None:
                self._metering = Metering(samples.find_meters(tx))
            frequencies = {policy.id: policy.policy.copy_frequency_s for policy in clouds.list_policies(tx)}
            policies = {mapping.id: mapping.policy_id for mapping in clouds.list_mappings(tx)}
            listed = [(item, frequencies[policies[item.cloud_mapping_id]]) for item in items.listed(tx)]
        self._write(*self._metering.look(listed, now))
        hour = now.replace(minute=0, second=0, microsecond=0)
        if hour != self._hour:
            with self.ctx.store.transaction() as tx:
                samples.sum_up(tx, now)
            self._hour = hour

    def _write(self, complete: Sequence[Sample], meters: Sequence[Meter]) -> None:
        if not complete:
            return
        with self.ctx.store.transaction() as tx:
            for sample in complete:
                samples.add(tx, sample)
            for meter in meters:
                samples.put_meter(tx, meter)

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self.look()
            except Exception:
                log.exception("health could not be looked at; it is tried again")
