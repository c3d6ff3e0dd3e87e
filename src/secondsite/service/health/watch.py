"""The thread that keeps the list of what is wrong now, until it is closed."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Final

from secondsite.service.context import Context
from secondsite.service.health.keeper import keep

log = logging.getLogger("secondsite.service")

EVERY_S: Final = 5.0


@dataclass(slots=True)
class HealthWatch:
    """Looks every few seconds. What it meets is logged, and it looks again: a broken look must not end the watch."""

    ctx: Context
    every_s: float = EVERY_S
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._loop, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; returns when the thread has."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Look once."""
        keep(self.ctx)

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self.look()
            except Exception:
                log.exception("health could not be looked at; it is tried again")
