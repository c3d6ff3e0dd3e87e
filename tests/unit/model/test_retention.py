"""Which points a policy keeps: by age, by count, and as a ladder."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.model.ids import Sequence
from secondsite.model.manifest import Consistency
from secondsite.model.policy import Policy
from secondsite.model.retention import POINTS_MIN, PointAge, ladder_points, points_to_keep

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
LADDER = Policy(retention_hours=24 * 30, keep_all_hours=6, keep_hourly_hours=48)


def points(*ages_h):
    return [PointAge(number, NOW - timedelta(hours=age)) for number, age in enumerate(ages_h, start=1)]


def kept(ages_h, **policy):
    return points_to_keep(points(*ages_h), Policy(**policy), NOW)


def every(minutes, hours, *, application=()):
    """Points up to NOW, oldest first; those with an age of `application` hours are application-consistent."""
    ages = [age / 60 for age in range(0, int(hours * 60) + 1, minutes)][::-1]
    return [
        PointAge(
            Sequence(number),
            NOW - timedelta(hours=age),
            Consistency.APPLICATION if age in application else Consistency.CRASH,
        )
        for number, age in enumerate(ages, start=1)
    ]


def ages_of(found, sequences):
    by_sequence = {point.sequence: point for point in found}
    return [(NOW - by_sequence[sequence].time) / timedelta(hours=1) for sequence in sequences]


# -- by age and count


def test_no_points_have_nothing_to_keep():
    assert kept([]) == []


def test_points_older_than_the_hours_are_given_up():
    assert kept([30, 25, 24, 10, 1], retention_hours=24) == [3, 4, 5]


def test_more_points_than_allowed_are_given_up():
    assert kept([5, 4, 3, 2, 1], retention_points=3) == [3, 4, 5]


@pytest.mark.parametrize("ages", [[50], [60, 50], [70, 60, 50]])
def test_the_newest_points_stay_whatever_their_age(ages):
    assert kept(ages, retention_hours=1)[-POINTS_MIN:] == list(range(1, len(ages) + 1))[-POINTS_MIN:]


def test_the_stricter_of_hours_and_count_decides():
    assert kept([30, 3, 2, 1], retention_hours=24, retention_points=2) == [3, 4]
    assert kept([30, 29, 2, 1], retention_hours=24, retention_points=100) == [3, 4]


def test_a_point_from_the_future_does_no_harm():
    assert kept([2, 1, -100], retention_hours=24) == [1, 2, 3]


def test_nothing_ages_while_no_point_arrives():
    found = points(30, 20, 10, 1)
    assert points_to_keep(found, Policy(retention_hours=24), NOW) == [2, 3, 4]
    assert points_to_keep(found, Policy(retention_hours=24), NOW + timedelta(days=365)) == [2, 3, 4]


# -- the ladder


def test_every_point_then_one_an_hour_then_one_a_day():
    found = every(10, 24 * 40)
    ages = ages_of(found, points_to_keep(found, LADDER, NOW))
    # Midday: the whole hours up to 6 h, the whole days up to 48 h.
    assert [age for age in ages if age < 6] == [minutes / 60 for minutes in range(350, -1, -10)]
    assert [age for age in ages if 6 <= age <= 60] == [float(hour) for hour in range(60, 5, -1)]
    assert [age for age in ages if age > 60] == [12.0 + 24 * day for day in range(29, 2, -1)]


def test_hours_stay_until_the_end_when_no_days_were_asked_for():
    found = every(20, 60)
    policy = Policy(retention_hours=48, keep_all_hours=2)
    ages = ages_of(found, points_to_keep(found, policy, NOW))
    assert [age for age in ages if age >= 2] == [float(hour) for hour in range(48, 1, -1)]


def test_an_application_consistent_point_stands_for_its_hour_and_day():
    found = every(10, 96, application=(20.5, 20 + 1 / 6, 80.5))
    ages = ages_of(found, points_to_keep(found, LADDER, NOW))
    assert [age for age in ages if 20 < age <= 21] == [20.5]
    assert [age for age in ages if 60 < age <= 84] == [80.5]


def test_a_point_that_a_group_shares_stands_before_one_that_only_this_machine_has():
    hour = every(10, 40)
    shared = [replace(point, shared=point.sequence % 6 == 4) for point in hour]
    alone = [replace(point, consistency=Consistency.APPLICATION) for point in hour]
    kept_alone = points_to_keep(alone, LADDER, NOW)
    stay = [point for point in shared if point.sequence in set(points_to_keep(shared, LADDER, NOW))]
    thinned = [point for point in stay if point.time < NOW - timedelta(hours=8)]
    assert thinned
    assert all(point.shared for point in thinned[1:])
    assert len(kept_alone) == len(stay)


def test_the_newest_points_stay_in_a_ladder_too():
    found = points(200.5, 200.4, 200.3, 200.2)
    assert points_to_keep(found, LADDER, NOW)[-POINTS_MIN:] == [3, 4]


times = st.lists(st.integers(0, 60 * 24 * 12), max_size=60).map(sorted)
ladders = st.builds(
    lambda every, hourly, daily: Policy(
        retention_hours=every + hourly + daily,
        keep_all_hours=every,
        keep_hourly_hours=every + hourly,
        retention_points=1_000_000,
    ),
    st.floats(0.1, 30),
    st.floats(0, 60),
    st.floats(0, 200),
)


def aged(minutes, application):
    return [
        PointAge(
            Sequence(number),
            NOW + timedelta(minutes=minute),
            Consistency.APPLICATION if number % 7 in application else Consistency.CRASH,
        )
        for number, minute in enumerate(minutes, start=1)
    ]


@given(times, st.integers(0, 60), st.sets(st.integers(0, 6)), ladders, st.integers(0, 9000))
def test_a_point_once_given_up_is_never_wanted_again(minutes, before, application, policy, later):
    """What all points together would keep later is among what earlier calls left."""
    found = aged(minutes, application)
    early = found[:before]
    then = early[-1].time if early else NOW
    left = points_to_keep(early, policy, then)
    rest = [point for point in early if point.sequence in set(left)] + found[before:]
    now = (found[-1].time if found else NOW) + timedelta(minutes=later)
    assert set(points_to_keep(found, policy, now)) <= set(points_to_keep(rest, policy, now))


@given(times, st.sets(st.integers(0, 6)), ladders)
def test_a_ladder_holds_no_more_than_it_says(minutes, application, policy):
    found = aged(minutes, application)
    if not found:
        return
    now = found[-1].time
    stay = {point.sequence: (now - point.time) / timedelta(hours=1) for point in found}
    stay = {sequence: stay[sequence] for sequence in points_to_keep(found, policy, now)}
    older = [age for age in stay.values() if age >= policy.keep_all_hours + 1]
    assert len(older) <= (ladder_points(policy) or 0)
    last = [point.sequence for point in found][-POINTS_MIN:]
    assert set(last) <= set(stay)
    assert all(age <= policy.retention_hours for sequence, age in stay.items() if sequence not in last)


@given(times, ladders)
def test_no_hour_and_no_day_within_the_ladder_is_left_without_a_point(minutes, policy):
    """A day may lose its point only when that point itself is too old."""
    found = aged(minutes, ())
    if not found:
        return
    now = found[-1].time
    stay = set(points_to_keep(found, policy, now))
    for day in {point.time.date() for point in found}:
        of_day = [point for point in found if point.time.date() == day]
        first_alive = of_day[0].time >= now - timedelta(hours=policy.retention_hours)
        assert not first_alive or stay & {point.sequence for point in of_day}


@given(
    st.lists(st.integers(-10_000_000, 10_000_000), max_size=30),
    st.integers(-10_000_000, 10_000_000),
    ladders,
    st.integers(2, 10),
)
def test_clocks_that_jump_never_cost_the_newest_points_and_never_break_the_count(minutes, now, policy, count):
    found = aged(minutes, {1})
    loose = Policy(retention_hours=policy.retention_hours, retention_points=count)
    at = NOW + timedelta(minutes=now)
    for rule in (policy, loose):
        stay = points_to_keep(found, rule, at)
        assert stay == sorted(stay)
        assert stay[-POINTS_MIN:] == [point.sequence for point in found][-POINTS_MIN:]
        assert len(stay) <= max(rule.retention_points, POINTS_MIN)
