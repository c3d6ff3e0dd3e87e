"""The token bucket under a clock that only sleeping moves."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import InvalidInputError
from secondsite.ship.throttle import TokenBucket
from support.ship_site import FakeClock

MIB = 1 << 20


@given(
    rate=st.integers(1000, 10_000_000),
    takes=st.lists(st.integers(1, 200_000), min_size=1, max_size=30),
)
def test_never_more_than_the_rate_and_the_burst(rate: int, takes: list[int]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(rate, monotonic=clock, sleep=clock.sleep)
    start, total = clock.now, 0
    for count in takes:
        assert bucket.take(count)
        total += count
        elapsed = clock.now - start
        assert total <= rate * elapsed + rate * 0.25 + 1
        assert elapsed <= total / rate + 0.01, "and not slower than it must be"


def test_idle_time_is_not_saved_up_beyond_the_burst() -> None:
    clock = FakeClock()
    bucket = TokenBucket(1000, burst_s=1, monotonic=clock, sleep=clock.sleep)
    clock.sleep(3600)
    start = clock.now
    bucket.take(3000)
    assert clock.now - start == pytest.approx(2, abs=0.01)


def test_new_rate_applies_to_those_who_wait() -> None:
    clock = FakeClock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        bucket.set_rate(1_000_000)

    bucket = TokenBucket(10, burst_s=0.1, monotonic=clock, sleep=sleep)
    start = clock.now
    bucket.take(100_000)
    assert clock.now - start < 1


def test_limit_taken_away_lets_waiters_through() -> None:
    clock = FakeClock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        bucket.set_rate(None)

    bucket = TokenBucket(1, monotonic=clock, sleep=sleep)
    assert bucket.take(10_000_000)
    assert clock.now < 1001


def test_without_a_limit_nothing_waits() -> None:
    def sleep(_: float) -> None:
        pytest.fail("waited")

    bucket = TokenBucket(None, sleep=sleep)
    assert bucket.take(1 << 40)
    assert bucket.piece == MIB


def test_cancel_ends_the_wait() -> None:
    clock = FakeClock()
    cancelled = threading.Event()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        cancelled.set()

    bucket = TokenBucket(1, monotonic=clock, sleep=sleep)
    assert not bucket.take(1_000_000, cancelled.is_set)


def test_pieces_are_small_on_a_thin_limit() -> None:
    assert TokenBucket(8192).piece == 4096
    assert TokenBucket(1_000_000).piece == 250_000
    assert TokenBucket(1 << 30).piece == MIB


@pytest.mark.parametrize("rate", [0, -5])
def test_rate_must_be_above_zero(rate: int) -> None:
    with pytest.raises(InvalidInputError):
        TokenBucket(rate)
    with pytest.raises(InvalidInputError):
        TokenBucket(1).set_rate(rate)
