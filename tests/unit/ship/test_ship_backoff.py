"""When to try again."""

from __future__ import annotations

import pytest

from secondsite.errors import InvalidInputError
from secondsite.ship.backoff import CYCLE_STEPS_S, CycleBackoff, QuickRetries


def test_cycle_steps_are_1_2_4_8_10_and_then_30_minutes() -> None:
    backoff = CycleBackoff()
    minutes = [backoff.failed() / 60 for _ in range(8)]
    assert minutes == [1, 2, 4, 8, 10, 30, 30, 30]
    assert backoff.failures == 8


def test_success_starts_over() -> None:
    backoff = CycleBackoff((1, 5))
    assert [backoff.failed(), backoff.failed(), backoff.failed()] == [1, 5, 5]
    backoff.succeeded()
    assert backoff.failed() == 1


@pytest.mark.parametrize("steps", [(), (0,), (1, -1)])
def test_steps_must_make_sense(steps: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInputError):
        CycleBackoff(steps)


def test_quick_retries_double_up_to_the_cap_with_full_jitter() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    delays = list(QuickRetries(attempts=6, base_s=1, cap_s=5).delays(uniform))
    assert delays == [1, 2, 4, 5, 5]
    assert {low for low, _ in asked} == {0}


def test_one_attempt_has_no_retries() -> None:
    assert list(QuickRetries(attempts=1).delays()) == []
    assert len(CYCLE_STEPS_S) == 6
