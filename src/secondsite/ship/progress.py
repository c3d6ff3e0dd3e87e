"""How far a transfer is: bytes, the rate over the last seconds, the time that is left.

`raw` bytes are those of the parts, `wire` bytes those that went over the network (compressed). Thread-safe.
The rate is that of a sliding window, so that a stall shows at once and an old burst is forgotten.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

WINDOW_S: Final = 15.0
_SAMPLE_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class ProgressView:
    """One look. `rate` in raw bytes per second; `eta_s` None while it can't be known."""

    raw: int
    wire: int
    total: int | None
    rate: float
    wire_rate: float
    eta_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return what a node reports to the service."""
        return {"bytes": self.raw, "total_bytes": self.total, "rate": self.rate, "eta_s": self.eta_s}


class Progress:
    """Counts; see the module."""

    def __init__(self, total: int | None = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._total = total
        self._raw = 0
        self._wire = 0
        self._samples: deque[tuple[float, int, int]] = deque([(monotonic(), 0, 0)])

    def expect(self, total: int | None) -> None:
        """Say how many raw bytes there are to send in all."""
        with self._lock:
            self._total = total

    def add(self, *, raw: int = 0, wire: int = 0) -> None:
        """Count bytes; `raw` may be negative when a part has to be sent again."""
        with self._lock:
            self._raw += raw
            self._wire += wire
            now = self._monotonic()
            self._forget(now)
            sample = (now, self._raw, self._wire)
            # The last sample is overwritten until it is _SAMPLE_S away from the one before: few samples, exact ends.
            if len(self._samples) > 1 and now - self._samples[-2][0] < _SAMPLE_S:
                self._samples[-1] = sample
            else:
                self._samples.append(sample)

    def view(self) -> ProgressView:
        """Return the figures of now."""
        with self._lock:
            now = self._monotonic()
            self._forget(now)
            then, raw, wire = self._samples[0]
            seconds = max(now - then, 1e-3)
            rate = max(0.0, (self._raw - raw) / seconds)
            eta: float | None = None
            if self._total is not None:
                left = max(0, self._total - self._raw)
                eta = 0.0 if left == 0 else (left / rate if rate > 0 else None)
            return ProgressView(
                self._raw, self._wire, self._total, rate, max(0.0, (self._wire - wire) / seconds), eta
            )

    def _forget(self, now: float) -> None:
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_S:
            samples.popleft()
        if samples[0][0] < now - WINDOW_S:
            # Nothing is known between the two samples around the window's start: keep the counts, move the time.
            samples[0] = (now - WINDOW_S, *samples[0][1:])
