"""A long pass rests: often enough, not too often, and it neither loses nor repeats what it goes through."""

from __future__ import annotations

from collections.abc import Iterator

from secondsite.service.pace import UNPACED, Pace


class Work:
    """A thread whose processor time the test counts: each value costs so many milliseconds before it is there."""

    def __init__(self, cost_ms: float) -> None:
        self.spent_s = 0.0
        self.cost_s = cost_ms / 1000
        self.rests: list[float] = []
        self.pace = Pace(self.rests.append, burst_s=0.0105, rest_s=0.03, clock=lambda: self.spent_s)

    def values(self, count: int) -> Iterator[int]:
        for value in range(count):
            self.spent_s += self.cost_s
            yield value


def test_it_rests_each_time_when_its_time_is_used_up() -> None:
    work = Work(cost_ms=2)
    assert list(work.pace.through(work.values(25))) == list(range(25))
    assert work.rests == [0.03] * 4  # after each six of them


def test_what_the_values_cost_after_they_came_counts_too() -> None:
    work = Work(cost_ms=0)
    for _value in work.pace.through(range(3)):
        work.spent_s += 0.011
    assert work.rests == [0.03] * 3


def test_a_short_pass_never_rests() -> None:
    work = Work(cost_ms=2)
    assert list(work.pace.through(work.values(5))) == list(range(5))
    assert work.rests == []


def test_who_is_waited_for_does_not_rest() -> None:
    assert list(UNPACED.through("abc")) == ["a", "b", "c"]


def test_portions_hold_everything_once_and_it_rests_between_two() -> None:
    work = Work(cost_ms=0)
    assert list(work.pace.portions([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert work.rests == [0.03, 0.03]
    assert list(work.pace.portions([], 2)) == []
