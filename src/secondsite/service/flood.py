"""Bounds what callers whom nobody knows can add to the audit trail: so many refused attempts a minute stand in it one by one.

What is above that is counted, and the next line that is admitted says how many were not noted. Callers with a token, and whatever was done, always are.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Final

PER_MINUTE: Final = 30
_MINUTE: Final = timedelta(minutes=1)


class Flood:
    """See the module's docstring. Thread-safe."""

    def __init__(self, per_minute: int = PER_MINUTE) -> None:
        self._per_minute = per_minute
        self._lock = threading.Lock()
        self._began: datetime | None = None
        self._admitted = 0
        self._left_out = 0

    def admit(self, now: datetime, detail: str | None) -> tuple[bool, str | None]:
        """Whether to note an attempt, and with which detail."""
        with self._lock:
            if self._began is None or not self._began <= now < self._began + _MINUTE:
                self._began, self._admitted = now, 0
            if self._admitted >= self._per_minute:
                self._left_out += 1
                return False, None
            self._admitted += 1
            left_out, self._left_out = self._left_out, 0
        if not left_out:
            return True, detail
        more = f"{left_out} refused attempts before this one were not noted"
        return True, more if detail is None else f"{detail}; {more}"
