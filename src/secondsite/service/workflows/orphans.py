"""Looks after jobs that are unfinished and whose workflow nobody runs: it is begun, or resumed, here.

That happens when a service that was taken over from lived a moment too long and took a workflow back: its record then says that it runs, and it does
not. A job is an orphan when two looks in a row did not find it running. Resuming one that runs elsewhere all the same does no harm: the other loses its ownership.
"""

from __future__ import annotations

import logging
import threading
from typing import Final, Protocol

from secondsite.model.ids import JobId

log = logging.getLogger("secondsite.service")

EVERY_S: Final = 5.0


class Runner(Protocol):
    """What the engine offers."""

    def unfinished(self) -> set[JobId]:
        """Jobs that have not ended."""
        ...

    def here(self) -> set[JobId]:
        """Jobs whose workflow this process runs."""
        ...

    def adopt(self, job_id: JobId) -> None:
        """Let this process run a job's workflow."""
        ...


class Orphans:
    """See the module's docstring."""

    def __init__(self, runner: Runner, every_s: float = EVERY_S) -> None:
        self._runner = runner
        self._every_s = every_s
        self._missed: set[JobId] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="orphans", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Adopt nothing any more; does not wait."""
        self._stop.set()

    def join(self) -> None:
        """Return when the last look has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once."""
        missing = self._runner.unfinished() - self._runner.here()
        for job_id in sorted(missing & self._missed):
            if self._stop.is_set():
                return
            log.warning("nobody runs the workflow of job %s: it goes on here", job_id)
            self._runner.adopt(job_id)
        self._missed = missing - self._missed

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
            except Exception:
                log.exception("looking after the jobs failed; trying again")
