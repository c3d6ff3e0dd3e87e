"""Lets others go first: a long pass of one thread rests in between.

Python computes in one thread at a time. A pass over 1,000 items takes some tenths of a second, and all that calls meanwhile shares the interpreter
with it; one that works for some milliseconds and then rests for longer costs them little.

Nobody may rest while he holds what others wait for, such as the turn to write: what writes much does so in portions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

PORTION: Final = 50
"""Items that are written in one transaction: some ten milliseconds in which no report can be."""
BURST_S: Final = 0.004
REST_S: Final = 0.012


@dataclass(frozen=True, slots=True)
class Pace:
    """Rests for `rest_s` after each `burst_s` of this thread's own processor time.

    rest: sleeps for so many seconds; who is to end soon gives one that returns early. clock: this thread's processor time in seconds.
    """

    rest: Callable[[float], object] = time.sleep
    burst_s: float = BURST_S
    rest_s: float = REST_S
    clock: Callable[[], float] = time.thread_time

    def through(self, values: Iterable[T]) -> Iterator[T]:
        """Yield the values, and rest between two of them when the time is used up: what comes from before a value counts, too."""
        begun = self.clock()
        for value in values:
            yield value
            if self.clock() - begun >= self.burst_s:
                self.rest(self.rest_s)
                begun = self.clock()

    def portions(self, values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
        """Yield at most `size` values at a time, and rest in between: for what writes each portion in a transaction of its own."""
        for first in range(0, len(values), size):
            if first > 0:
                self.rest(self.rest_s)
            yield values[first : first + size]


UNPACED: Final = Pace(rest=lambda _seconds: None)
"""For who is waited for."""
