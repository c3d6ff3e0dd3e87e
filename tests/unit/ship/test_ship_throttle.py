"""The token bucket under a clock that only sleeping moves."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import InvalidInputError
from secondsite.model.policy import Policy
from secondsite.model.schedule import window_from_text
from secondsite.ship.throttle import TokenBucket, rate_of
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


def test_a_bucket_follows_its_source_amid_a_transfer() -> None:
    clock = FakeClock()
    rates = [1000.0]
    bucket = TokenBucket(None, monotonic=clock, sleep=clock.sleep, source=lambda: rates[0])
    start = clock.now
    bucket.take(5000)
    assert clock.now - start == pytest.approx(5, abs=0.6)
    rates[0] = 100_000.0
    clock.sleep(1)
    start = clock.now
    bucket.take(100_000)
    assert clock.now - start == pytest.approx(1, abs=0.6)


def test_a_waiter_follows_its_source_too() -> None:
    clock = FakeClock()
    begun = clock.now
    bucket = TokenBucket(
        None, monotonic=clock, sleep=clock.sleep, source=lambda: 10.0 if clock.now - begun < 60 else None
    )
    bucket.take(1_000_000)  # a day, at the first rate
    assert 60 <= clock.now - begun <= 61


def test_the_rate_of_a_policy_is_that_of_its_own_zones_clock() -> None:
    office = window_from_text("mon-fri 08:00-18:00 2MiB")
    policy = Policy(bandwidth_limit=9000, bandwidth_schedule=(office,), bandwidth_zone="Europe/Amsterdam")
    monday = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)  # half past eight there
    assert rate_of(policy, monday) == 2 << 20
    assert rate_of(policy, monday - timedelta(hours=1)) == 9000
    assert rate_of(Policy(), monday) is None


def test_a_zone_that_nobody_knows_is_refused_by_its_field() -> None:
    policy = Policy(
        bandwidth_schedule=(window_from_text("daily 00:00-24:00 1MB"),), bandwidth_zone="Mars/Base"
    )
    with pytest.raises(InvalidInputError) as caught:
        rate_of(policy, datetime(2026, 11, 23, tzinfo=UTC))
    assert caught.value.attributes == {"field": "bandwidth_zone"}
