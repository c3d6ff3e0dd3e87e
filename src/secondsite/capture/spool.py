"""The bound on what lies in the spool: bytes are acquired before a part is written and released when it is shipped.

One part alone always fits, however large, so a small budget slows a cycle down and never stops it. The promise holds
only if somebody ships and releases while parts are produced.
"""

from __future__ import annotations

import threading

from secondsite.capture.port import Cancelled, CancelledError

_CANCEL_POLL_S = 0.2


class SpoolBudget:
    """A semaphore of `limit` bytes, shared by the threads that produce and the ones that ship."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes acquired now."""
        return self._used

    def acquire(self, count: int, cancelled: Cancelled | None = None) -> None:
        """Wait until `count` bytes fit, or until nothing else is in the spool.

        Raises:
            CancelledError: nothing was acquired.
        """
        with self._changed:
            while self._used and self._used + count > self.limit:
                if cancelled is not None and cancelled():
                    raise CancelledError("cancelled while waiting for room in the spool")
                self._changed.wait(_CANCEL_POLL_S)
            self._used += count

    def release(self, count: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()
