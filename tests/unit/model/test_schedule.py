"""Windows of the week: which limit holds when, what is refused, and when a source may resynchronise by itself."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import InvalidInputError
from secondsite.model.policy import Policy
from secondsite.model.schedule import (
    DAYS,
    checked_windows,
    limit_at,
    may_resync,
    text_of_window,
    window_from_text,
)

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
OFFICE = window_from_text("mon-fri 08:00-18:00 2MiB")
NIGHT = window_from_text("fri 22:00-06:00 none")


def at(day, clock):
    hours, minutes = clock.split(":")
    return MONDAY + timedelta(days=DAYS.index(day), hours=int(hours), minutes=int(minutes))


@pytest.mark.parametrize(
    ("day", "clock", "limit"),
    [
        ("mon", "07:59", 50_000),
        ("mon", "08:00", 2 << 20),
        ("fri", "17:59", 2 << 20),
        ("fri", "18:00", 50_000),
        ("sat", "12:00", 50_000),
        ("fri", "22:00", None),
        ("sat", "05:59", None),
        ("sat", "06:00", 50_000),
        ("fri", "05:59", 50_000),  # a window past midnight belongs to the day on which it begins
    ],
)
def test_the_limit_is_that_of_the_window_or_the_policys_own(day, clock, limit):
    assert limit_at([OFFICE, NIGHT], 50_000, at(day, clock)) == limit


def test_the_first_window_that_holds_decides():
    lunch = window_from_text("daily 12:00-13:00 100KB")
    assert limit_at([lunch, OFFICE], None, at("tue", "12:30")) == 100_000
    assert limit_at([OFFICE, lunch], None, at("tue", "12:30")) == 2 << 20


def test_a_whole_day_and_a_week_that_turns():
    assert limit_at([window_from_text("sat,sun 00:00-24:00 1MB")], None, at("sun", "23:59")) == 1_000_000
    assert window_from_text("sat-mon 01:00-02:00 1MB")["days"] == ["mon", "sat", "sun"]
    assert limit_at([window_from_text("sun 23:00-01:00 1MB")], None, at("mon", "00:30")) == 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mon 08:00-18:00",
        "noday 08:00-18:00 1MB",
        "mon 8:00-18:00 1MB",
        "mon 08:00-25:00 1MB",
        "mon 08:00-08:00 1MB",
        "mon 08:00-18:00 fast",
        "mon 08:00-18:00 1KB",
        "mon 24:00-08:00 1MB",
    ],
)
def test_a_text_that_is_no_window_is_refused_with_an_example(text):
    with pytest.raises(InvalidInputError) as caught:
        window_from_text(text)
    assert caught.value.attributes == {"field": "bandwidth_schedule"}
    assert "mon-fri" in caught.value.hint


@pytest.mark.parametrize(
    "windows",
    [
        5,
        ["mon 08:00-18:00 1MB"],
        [{"days": ["mon"], "from": "08:00", "to": "09:00"}],
        [{"days": [], "from": "08:00", "to": "09:00", "limit": None}],
        [{"days": "mon", "from": "08:00", "to": "09:00", "limit": None}],
        [{"days": ["mon"], "from": "08:00", "to": "09:00", "limit": True}],
        [{"days": ["mon"], "from": 8, "to": "09:00", "limit": None}],
        [dict(OFFICE)] * 51,
    ],
)
def test_a_schedule_of_another_shape_is_refused(windows):
    with pytest.raises(InvalidInputError):
        checked_windows(windows)


windows = st.builds(
    lambda days, begin, end, limit: {
        "days": sorted(days, key=DAYS.index),
        "from": f"{begin // 60:02}:{begin % 60:02}",
        "to": f"{end // 60:02}:{end % 60:02}",
        "limit": limit,
    },
    st.sets(st.sampled_from(DAYS), min_size=1),
    st.integers(0, 719),
    st.integers(720, 1440),
    st.none() | st.integers(8192, 1 << 40),
)


@given(windows)
def test_a_window_survives_its_text(window):
    assert window_from_text(text_of_window(window)) == window


@given(st.lists(windows, max_size=4), st.integers(0, 7 * 1440 - 1))
def test_every_minute_of_the_week_has_exactly_one_limit(schedule, minute):
    """Against the plainest reading: the first window whose day and minutes match."""
    time = MONDAY + timedelta(minutes=minute)
    clock = f"{time.hour:02}:{time.minute:02}"
    holding = [w for w in schedule if DAYS[time.weekday()] in w["days"] and w["from"] <= clock < w["to"]]
    assert limit_at(checked_windows(schedule), 9999, time) == (holding[0]["limit"] if holding else 9999)


def test_a_policy_takes_its_schedule_from_json_and_gives_it_back():
    policy = Policy(bandwidth_schedule=[dict(OFFICE)], bandwidth_zone="Europe/Amsterdam")
    assert policy.bandwidth_schedule == (OFFICE,)
    with pytest.raises(InvalidInputError):
        Policy(bandwidth_zone="no zone at all")


@pytest.mark.parametrize(
    ("window", "clock", "may"),
    [
        ("18:30-06:00", "18:29", False),
        ("18:30-06:00", "18:30", True),
        ("18:30-06:00", "05:59", True),
        ("18:30-06:00", "06:00", False),
        ("01:00-02:00", "01:30", True),
        ("01:00-02:00", "02:00", False),
        ("always", "12:00", True),
        ("manual", "00:00", False),
    ],
)
def test_a_source_resynchronises_by_itself_only_in_the_window(window, clock, may):
    assert may_resync(window, at("wed", clock)) is may


@pytest.mark.parametrize("window", ["", "18:30", "18:30-18:30", "18:30-25:00", "never", None, "1:00-2:00"])
def test_a_window_for_resynchronizations_that_is_none_is_refused(window):
    with pytest.raises(InvalidInputError) as caught:
        Policy(resync_window=window)
    assert caught.value.attributes == {"field": "resync_window"}
