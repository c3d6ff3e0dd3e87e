"""A token bucket: how many bytes may leave this node, whoever sends them.

Promises: over any stretch of time no more than rate x time + burst bytes are let through; waiters are served in
the order in which they asked; a new rate applies at once, also to those who wait. A bucket that was given a `source` asks it what the
rate is, so a policy's change or the begin of a window of its schedule holds within half a second, amid a transfer. The clock and
the sleep are injected, so a test of an hour takes no time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from secondsite.errors import InvalidInputError
from secondsite.model.policy import Policy
from secondsite.model.schedule import limit_at
from secondsite.model.units import MIB

_PIECE_MIN: Final = 4096
_PIECE_S: Final = 0.25
_LOOK_AGAIN_S: Final = 0.5
"""A waiter looks so often whether the rate has changed or it was cancelled."""

_WAIT_MIN_S: Final = 0.001
"""Shorter waits would only turn the loop; a clock may not even be able to show them."""


class TokenBucket:
    """Bytes per second, or no limit (None). Shared by all senders that the limit is for."""

    def __init__(
        self,
        rate: float | None,
        *,
        burst_s: float = 0.25,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        source: Callable[[], float | None] | None = None,
    ) -> None:
        if source is not None:
            rate = source()
        _check_rate(rate)
        self._source = source
        self._rate = rate
        self._burst_s = burst_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._taken = 0.0  # what was ever asked for
        self._earned = 0.0  # what the rate has allowed so far; never more than taken + burst
        self._at = monotonic()
        self._asked_at = self._at

    @property
    def rate(self) -> float | None:
        """Bytes per second, or None."""
        return self._rate

    def set_rate(self, rate: float | None) -> None:
        """Change the rate; those who wait notice within half a second."""
        _check_rate(rate)
        with self._lock:
            self._earn()
            self._rate = rate

    @property
    def piece(self) -> int:
        """How much to take at a time so that a thin limit is spent evenly: up to 1 MiB."""
        self._follow()
        rate = self._rate
        return MIB if rate is None else max(_PIECE_MIN, min(MIB, int(rate * _PIECE_S)))

    def take(self, count: int, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Wait until `count` bytes may leave; False if `cancelled` became true meanwhile."""
        self._follow()
        with self._lock:
            self._earn()
            self._taken += count
            ticket = self._taken
        while not cancelled():
            self._follow()
            with self._lock:
                self._earn()
                if self._rate is None or self._earned >= ticket:
                    return True
                wait = (ticket - self._earned) / self._rate
            self._sleep(min(max(wait, _WAIT_MIN_S), _LOOK_AGAIN_S))
        return False

    def _follow(self) -> None:
        """Ask the source for the rate, at most twice a second."""
        if self._source is None or self._monotonic() - self._asked_at < _LOOK_AGAIN_S:
            return
        self._asked_at = self._monotonic()
        rate = self._source()
        if rate != self._rate:
            self.set_rate(rate)

    def _earn(self) -> None:
        now = self._monotonic()
        if self._rate is None:
            self._earned = max(self._earned, self._taken)
        else:
            most = self._taken + self._rate * self._burst_s
            self._earned = min(most, self._earned + (now - self._at) * self._rate)
        self._at = now


def rate_of(policy: Policy, now: datetime) -> int | None:
    """Return the bytes a second that `policy` allows at `now`, or None for no limit.

    Raises:
        InvalidInputError: this machine does not know the policy's time zone.
    """
    if not policy.bandwidth_schedule:
        return policy.bandwidth_limit
    return limit_at(
        policy.bandwidth_schedule, policy.bandwidth_limit, now.astimezone(zone_of(policy.bandwidth_zone))
    )


def zone_of(name: str) -> tzinfo:
    """Return the time zone of this name; InvalidInputError if it is not known here."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"the time zone {name!r} is not known here",
            hint='see "timedatectl list-timezones", or install tzdata',
            field="bandwidth_zone",
        ) from error


def _check_rate(rate: float | None) -> None:
    if rate is not None and rate <= 0:
        raise InvalidInputError("a bandwidth limit must be above 0", hint="give no limit to switch it off")
