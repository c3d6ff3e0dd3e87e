"""Whether, and how hard, the next part is compressed: chosen by what the last ones showed.

Seconds to bring one byte across are 1/speed + ratio/link for a level that compresses at `speed` bytes per second
to `ratio` of the size, and 1/link as it is. All three are measured as parts go: the link's pace from the time
spent in sends (a bandwidth limit counts as a slow link), speed and ratio from the compressor. The cheapest wins.
So a fast link gets bytes as they are, a thin one level 3 (it pays below about 60 MiB/s a connection), and data
that does not shrink travels as it is; every PROBE_EVERY parts the alternative is tried, for data changes. A part of up to
CHEAP bytes, as most cycles have, is compressed also for a fast link, if its data shrink: that costs some 20 ms, and others
want the link, too.

Measured on two cores, 1 MiB blocks, one thread: level 1 402 MiB/s to 0.20, level 3 356 MiB/s to 0.18; random data
1,409 MiB/s.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

from secondsite.model.units import MIB, PART_DATA_MAX

LEVELS: Final = (1, 3)
PROBE_EVERY: Final = 32
SMALL: Final = 64 << 10
"""A part of up to so many bytes teaches nothing about the link and is compressed at level 1: it costs nothing."""
CHEAP: Final = 8 * MIB
"""A part of up to so many bytes is compressed at level 1 at least, unless its data do not shrink."""

PART_MIN: Final = MIB
PART_UNMEASURED: Final = 8 * MIB
PART_S: Final = 20.0

_WEIGHT: Final = 0.3
_SHRINKS: Final = 0.95
"""Worse than this ratio is not worth the receiver's work."""


@dataclass(slots=True)
class _Level:
    speed: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Sent:
    """What one part showed. `level` 0 is "as it is"; times in seconds."""

    raw: int
    wire: int
    level: int
    compress_s: float
    send_s: float


@dataclass(slots=True)
class Compression:
    """The choice. Thread-safe; shared by the connections of one sender."""

    enabled: bool = True
    _link: float | None = None
    _levels: dict[int, _Level] = field(
        default_factory=lambda: {1: _Level(400.0 * MIB, 0.5), 3: _Level(350.0 * MIB, 0.45)}
    )
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, length: int) -> int:
        """Return the level for the next part, 0 to leave it as it is."""
        if not self.enabled:
            return 0
        with self._lock:
            if length <= SMALL or self._link is None:
                return LEVELS[0]
            self._count += 1
            best = min((0, *LEVELS), key=self._cost)
            if best == 0 and length <= CHEAP and self._levels[LEVELS[0]].ratio <= _SHRINKS:
                best = LEVELS[0]
            if self._count % PROBE_EVERY == 0:
                return LEVELS[0] if best != LEVELS[0] else LEVELS[1]
            return best

    def observe(self, sent: Sent) -> None:
        """Learn from a part that has arrived."""
        if sent.raw <= SMALL:
            return
        with self._lock:
            link = sent.wire / max(sent.send_s, 1e-6)
            self._link = link if self._link is None else _blend(self._link, link)
            if sent.level:
                level = self._levels[sent.level]
                speed = _blend(level.speed, sent.raw / max(sent.compress_s, 1e-6)) / level.speed
                ratio = sent.wire / sent.raw / level.ratio
                # What one level learns of the data holds for the other in proportion, until that one is tried.
                for known in self._levels.values():
                    known.speed *= speed
                    known.ratio = min(1.0, known.ratio * ratio)

    @property
    def link(self) -> float | None:
        """Bytes per second that one connection brings across, or None while nothing was measured."""
        return self._link

    def suggested_part_size(self) -> int:
        """Return how many bytes a part should have so that it takes about 20 s at most: 1 to 64 MiB."""
        with self._lock:
            if self._link is None:
                return PART_UNMEASURED
            size = int(self._link * PART_S)
            return max(PART_MIN, min(PART_DATA_MAX, size // MIB * MIB))

    def _cost(self, level: int) -> float:
        assert self._link is not None
        if level == 0:
            return 1 / self._link
        known = self._levels[level]
        if known.ratio > _SHRINKS:
            return float("inf")
        return 1 / known.speed + known.ratio / self._link


def _blend(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old)
