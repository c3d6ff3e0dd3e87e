import pytest

from secondsite.errors import InvalidInputError
from secondsite.model.policy import COPY_FREQUENCIES_S, Policy


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
        ("app_consistent_hours", 0),
        ("app_consistent_hours", 13),
        ("keep_all_hours", 0.0),
        ("keep_all_hours", 25.0),
        ("keep_hourly_hours", 5.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(InvalidInputError) as caught:
        Policy(**{field: value})
    assert caught.value.attributes == {"field": field}
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"keep_all_hours": 6, "keep_hourly_hours": 5}, "keep_hourly_hours"),
        ({"keep_all_hours": 6, "keep_hourly_hours": 25}, "keep_hourly_hours"),
        ({"keep_all_hours": 6, "copy_frequency_s": 5}, "retention_points"),
        ({"keep_all_hours": 6, "retention_points": 100}, "retention_points"),
    ],
)
def test_a_ladder_that_does_not_fit_is_refused_by_the_field_to_change(settings, field):
    with pytest.raises(InvalidInputError) as caught:
        Policy(**settings)
    assert caught.value.attributes == {"field": field}


def test_a_ladder_is_accepted():
    policy = Policy(retention_hours=24 * 90, keep_all_hours=12, keep_hourly_hours=24 * 7)
    assert policy.hourly_until_hours == 24 * 7
    assert Policy(keep_all_hours=6).hourly_until_hours == 24
