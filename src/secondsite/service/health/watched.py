"""What the health watch found at its last look, kept for those who ask in between: figures that take a pass over all items.

It is as old as the watch's last look; `of` returns nothing when that is too long ago (no watch runs, as in a test or at the start), and
whoever asks then looks for himself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

FRESH: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Looked:
    """One look.

    shares: as `samples.shares` returns them, of the minute `shares_of`. levels: each item's health level.
    """

    time: datetime
    shares_of: datetime
    shares: Mapping[str, tuple[float, int]]
    levels: Mapping[str, str]


@dataclass(slots=True)
class Watched:
    """The last look, or none. One thread writes, any may read."""

    _last: Looked | None = field(default=None, init=False)

    def put(self, looked: Looked) -> None:
        """Keep what was found."""
        self._last = looked

    def of(self, now: datetime) -> Looked | None:
        """Return the last look unless it is too old, or later than now (the clock was set back)."""
        last = self._last
        return last if last is not None and timedelta() <= now - last.time <= FRESH else None
