"""When to try again: seconds inside a transfer, minutes between cycles.

Quick retries are for a connection that broke: a few, with full jitter (any time up to a doubling limit), so that
many senders do not come back at the same instant. The cycle back-off is for a peer that is away: 1, 2, 4, 8, 10
minutes and from then on each 30, until a cycle succeeds. Both are pure; the caller waits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from secondsite.errors import InvalidInputError

CYCLE_STEPS_S: Final = (60.0, 120.0, 240.0, 480.0, 600.0, 1800.0)
EAGER_STEPS_S: Final = (1.0, 2.0, 5.0, 10.0, *CYCLE_STEPS_S)
"""For short copy frequencies: a peer that only restarts is met again within seconds."""


class CycleBackoff:
    """Counts failures of one replicator in a row and says how long to wait after each; the last step repeats."""

    def __init__(self, steps_s: Sequence[float] = CYCLE_STEPS_S) -> None:
        if not steps_s or min(steps_s) <= 0:
            raise InvalidInputError("back-off steps must be above 0, and there must be one")
        self._steps_s = tuple(steps_s)
        self.failures = 0

    def failed(self) -> float:
        """Count a failure and return the seconds to wait before the next try."""
        step = self._steps_s[min(self.failures, len(self._steps_s) - 1)]
        self.failures += 1
        return step

    def succeeded(self) -> None:
        """Start over."""
        self.failures = 0


@dataclass(frozen=True, slots=True)
class QuickRetries:
    """At most `attempts` tries in all, and no new one later than `total_s` after the first failure."""

    attempts: int = 5
    base_s: float = 0.5
    cap_s: float = 8.0
    total_s: float = 60.0

    def delays(self, uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
        """Yield the seconds to wait before each further try."""
        for index in range(self.attempts - 1):
            yield uniform(0.0, min(self.cap_s, self.base_s * 2**index))


NO_RETRIES: Final = QuickRetries(attempts=1)
