"""Settling in the background: a failed-over machine is made to stand alone while it runs.

One that is off is left alone until somebody waits for it (a commit): what copies into its images locks them, and whoever
wants to start it again, after a crash say, would be refused for as long as that takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from secondsite.errors import ConflictError, Retry, SecondSiteError
from secondsite.fabric.port import CancelledError
from secondsite.model.ids import ItemId
from secondsite.node.records import ItemStore
from secondsite.node.target.replicas import Replicas

TRIES: Final = 8
"""While somebody waits. After a view came back, QEMU fails the first request to each of its disks (measured), and each failed
try is followed by one that goes on where it was."""

log = structlog.get_logger(__name__)


class Settler:
    """Runs `Replicas.settle` in a thread per failed-over item, and again after failures, until it is done."""

    def __init__(self, items: ItemStore, replicas: Replicas) -> None:
        self._items = items
        self._replicas = replicas
        self._stop = threading.Event()
        self._cancelled: set[ItemId] = set()
        self._awaited: set[ItemId] = set()
        self._lock = threading.Lock()
        self._threads: dict[ItemId, threading.Thread] = {}
        self._progress: dict[ItemId, tuple[int, int]] = {}
        self._errors: dict[ItemId, SecondSiteError] = {}

    def start(self, item: ItemId) -> None:
        """Begin or go on; nothing happens if it runs or is done, or if the machine is off and nobody waits."""
        if self._may_not(item):
            return
        with self._lock:
            thread = self._threads.get(item)
            if self._stop.is_set() or (thread is not None and thread.is_alive()):
                return
            self._cancelled.discard(item)
            thread = threading.Thread(target=self._run, args=(item,), name=f"settle-{item[:8]}", daemon=True)
            self._threads[item] = thread
            thread.start()

    def wait(self, item: ItemId, report: Callable[[int, int], None], poll_s: float = 0.2) -> None:
        """Wait until the item's machine stands alone, also if it is off; raise what stopped it, CancelledError if the node's
        stop did.
        """
        self._awaited.add(item)
        try:
            self._wait(item, report, poll_s)
        finally:
            self._awaited.discard(item)

    def _wait(self, item: ItemId, report: Callable[[int, int], None], poll_s: float) -> None:
        tries = 0
        while True:
            record = self._items.get(item)
            if record.failover is None or record.failover.standalone:
                return
            if not record.failover.started:
                raise ConflictError(
                    f"the failover of {record.name} did not come to its end", hint="it has to be rolled back"
                )
            self.start(item)
            with self._lock:
                thread = self._threads.get(item)
            if thread is not None:
                thread.join(poll_s)
                report(*self._progress.get(item, (0, 0)))
                if not thread.is_alive() and item in self._errors:
                    tries += 1
                    error = self._errors.pop(item)
                    if error.retry is Retry.NEVER or tries >= TRIES:
                        raise error
                    self._stop.wait(poll_s)
            if self._stop.is_set() and (thread is None or not thread.is_alive()):
                # Nobody settles it any more. No conflict: that would be an outcome, and the order runs again.
                raise CancelledError("the node is stopping", hint="it goes on when the node runs again")

    def cancel(self, item: ItemId) -> None:
        """Stop settling the item and wait until it has stopped; what was pulled stays pulled."""
        with self._lock:
            self._cancelled.add(item)
        self.join(item)

    def join(self, item: ItemId) -> None:
        """Wait until the item's thread has ended."""
        with self._lock:
            thread = self._threads.get(item)
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """Stop; what was pulled stays pulled."""
        self._stop.set()
        for thread in list(self._threads.values()):
            thread.join(30)

    def _run(self, item: ItemId) -> None:
        self._errors.pop(item, None)
        try:
            self._replicas.settle(
                item,
                lambda done, total: self._progress.update({item: (done, total)}),
                lambda: self._stop.is_set() or item in self._cancelled or self._may_not(item),
            )
        except CancelledError as error:
            # No outcome: whoever still wants it begins again.
            log.info("settling was cut", item=item, reason=error.message)
        except SecondSiteError as error:
            log.warning("settling failed", item=item, error=error.to_dict())
            self._errors[item] = error
        except Exception as error:
            log.exception("settling broke", item=item)
            self._errors[item] = SecondSiteError(f"settling broke: {error}")

    def _may_not(self, item: ItemId) -> bool:
        try:
            return item not in self._awaited and self._replicas.is_off(item)
        except SecondSiteError:
            return False  # what has to be copied finds out for itself what is wrong there
