from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import InvalidInputError
from secondsite.model.policy import COPY_FREQUENCIES_S, POINTS_MIN, PointAge, Policy, oldest_to_keep

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def points(*ages_h):
    return [PointAge(number, NOW - timedelta(hours=age)) for number, age in enumerate(ages_h, start=1)]


def kept(ages_h, **policy):
    return oldest_to_keep(points(*ages_h), Policy(**policy), NOW)


def test_no_points_have_no_oldest():
    assert kept([]) is None


def test_points_older_than_the_hours_are_given_up():
    assert kept([30, 25, 24, 10, 1], retention_hours=24) == 3


def test_more_points_than_allowed_are_given_up():
    assert kept([5, 4, 3, 2, 1], retention_points=3) == 3


@pytest.mark.parametrize("ages", [[50], [60, 50], [70, 60, 50]])
def test_the_newest_points_stay_whatever_their_age(ages):
    assert kept(ages, retention_hours=1) == max(1, len(ages) - POINTS_MIN + 1)


def test_the_stricter_of_hours_and_count_decides():
    assert kept([30, 3, 2, 1], retention_hours=24, retention_points=2) == 3
    assert kept([30, 29, 2, 1], retention_hours=24, retention_points=100) == 3


def test_a_point_from_the_future_does_no_harm():
    assert kept([2, 1, -100], retention_hours=24) == 1


@given(st.lists(st.floats(0, 200), max_size=30), st.floats(0.1, 300), st.integers(2, 40))
def test_what_is_kept_obeys_the_policy(ages, hours, count):
    found = points(*sorted(ages, reverse=True))
    oldest = oldest_to_keep(found, Policy(retention_hours=hours, retention_points=count), NOW)
    if not found:
        assert oldest is None
        return
    stay = [point for point in found if point.sequence >= oldest]
    gone = [point for point in found if point.sequence < oldest]
    assert min(len(found), POINTS_MIN) <= len(stay) <= max(count, POINTS_MIN)
    limit = NOW - timedelta(hours=hours)
    assert len(stay) <= POINTS_MIN or all(point.time >= limit for point in stay)
    assert len(stay) == count or all(point.time < limit for point in gone)


@pytest.mark.parametrize("frequency", COPY_FREQUENCIES_S)
def test_the_known_copy_frequencies_are_accepted(frequency):
    assert Policy(copy_frequency_s=frequency).copy_frequency_s == frequency


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("copy_frequency_s", 60),
        ("retention_hours", 0.0),
        ("retention_hours", 8761.0),
        ("retention_hours", float("nan")),
        ("retention_points", 1),
        ("retention_points", 1_000_001),
        ("bandwidth_limit", 8191),
        ("rpo_threshold_s", 0),
        ("shutdown_timeout_s", 0),
        ("shutdown_timeout_s", 3601),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(InvalidInputError) as caught:
        Policy(**{field: value})
    assert caught.value.attributes == {"field": field}
    assert caught.value.hint
