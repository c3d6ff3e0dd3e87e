"""What a node tells of points: whole lists one after the other, then what is new and what went; a lost report is told again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from secondsite.node import point_lists
from secondsite.node.channel import report_every_s
from secondsite.node.records import Role
from support.reported_points import NOW, Site, sequences


def test_a_list_is_told_whole_once_and_then_what_changed() -> None:
    site = Site({"web": {1: "a", 2: "b"}})
    assert site.told() == {"web": ([1, 2], [], True)}
    assert site.told() == {}
    site.lists["web"] = {2: "b", 3: "c"}
    assert site.told() == {"web": ([3], [1], False)}
    assert site.told() == {}


def test_a_point_that_took_others_in_is_new_and_only_they_went() -> None:
    site = Site({"web": {1: "a", 2: "b", 3: "c"}})
    site.told()
    site.lists["web"] = {1: "a", 3: "merged"}
    assert site.told() == {"web": ([3], [2], False)}


def test_what_a_lost_report_told_is_told_again_with_what_came_since() -> None:
    site = Site({"web": {1: "a"}})
    site.told()
    site.lists["web"] = {1: "a", 2: "b"}
    assert site.told() == {"web": ([2], [], False)}
    site.reporter.forget_sent()
    site.lists["web"] = {2: "b", 3: "c"}
    assert site.told() == {"web": ([2, 3], [1], False)}


def test_a_whole_list_whose_report_was_lost_is_told_whole_again() -> None:
    site = Site({"web": {1: "a"}})
    site.told()
    site.reporter.forget_sent()
    assert site.told() == {"web": ([1], [], True)}


def test_whole_lists_are_spread_over_reports_and_each_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_lists, "WHOLE_POINTS", 3)
    site = Site({name: {1: "a", 2: "b"} for name in ("a", "b", "c")})
    assert list(site.told()) == ["a", "b"]  # begun until there are three
    assert list(site.told()) == ["c"]
    assert site.told() == {}


def test_every_twelve_hours_the_whole_list_is_told_for_a_service_that_forgot() -> None:
    site = Site({"web": {1: "a"}})
    site.told()
    site.now += timedelta(minutes=1)
    site.told()
    site.now += timedelta(hours=11, minutes=59)
    assert site.told() == {}
    site.now += timedelta(minutes=1)
    assert site.told() == {"web": ([1], [], True)}


def test_a_first_list_is_told_again_a_minute_later_for_a_service_that_did_not_know_who_keeps_the_journal() -> (
    None
):
    site = Site({"web": {6: "adopted"}})
    assert site.told() == {
        "web": ([6], [], True)
    }  # before the service has turned the direction: it takes none
    site.lists["web"] = {6: "adopted", 7: "b"}
    assert site.told() == {"web": ([7], [], False)}
    site.now += timedelta(minutes=1)
    assert site.told() == {"web": ([6, 7], [], True)}
    assert site.told() == {}


def test_the_points_of_another_journal_of_the_same_item_are_told_from_the_beginning() -> None:
    site = Site({"web": {1: "a", 2: "b"}})
    site.told()
    site.role = Role.ACTIVE  # committed: the journal went, and so did its points at the service
    assert site.told() == {}
    site.role = Role.TARGET
    site.lists["web"] = {2: "b", 9: "c"}
    assert site.told() == {"web": ([2, 9], [], True)}


def test_a_node_with_many_items_reports_less_often_but_every_five_seconds() -> None:
    assert [report_every_s(count) for count in (0, 1, 10, 20, 100, 1000)] == [1.0, 1.0, 1.0, 2.0, 5.0, 5.0]


def test_of_an_item_whose_journal_cannot_be_read_nothing_is_told_and_all_of_the_others() -> None:
    site = Site({"web": {1: "a"}, "mail": {2: "b"}, "db": {3: "c"}})
    site.broken["web"] = OSError(30, "Read-only file system")
    site.broken["db"] = OSError(116, "Stale file handle")
    assert site.told() == {"mail": ([2], [], True)}
    del site.broken["web"]
    assert site.told() == {"web": ([1], [], True)}


def test_a_long_list_is_told_in_slices_from_the_newest_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_lists, "WHOLE_POINTS", 3)
    site = Site({"web": dict.fromkeys((1, 2, 4, 5, 6, 8, 9), "a")})
    entry = site.entry("web")
    assert (sequences(entry), entry["complete"], entry["from"], entry.get("to")) == ([6, 8, 9], True, 6, None)
    site.lists["web"] = {1: "a", 4: "a", 5: "merged", 6: "a", 9: "merged", 10: "new"}
    entry = site.entry("web")
    # Below 6, the points of a slice that says by itself that 2 went; above, what is new and what went.
    assert (sequences(entry), entry["gone"]) == ([1, 4, 5, 9, 10], [8])
    assert (entry["complete"], entry.get("from"), entry["to"]) == (True, None, 5)
    assert site.told() == {}


def test_the_first_items_long_list_keeps_no_other_item_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_lists, "WHOLE_POINTS", 3)
    monkeypatch.setattr(point_lists, "LEAST_POINTS", 1)
    long = dict.fromkeys(range(1, 100), "a")
    site = Site({"long": long, "web": {1: "a"}, "longer": dict(long), "mail": {1: "a"}})
    told = [site.told() for _ in range(4)]
    assert {item for report in told for item in report} == set(site.lists)
    site.lists["web"] = {1: "a", 2: "b"}
    assert site.told()["web"] == ([2], [], False)  # though this report has no room for more of the long lists


def test_many_changes_are_told_the_newest_first_and_in_several_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site({"web": dict.fromkeys(range(1, 7), "a")})
    site.told()
    monkeypatch.setattr(point_lists, "WHOLE_POINTS", 3)
    site.lists["web"] = dict.fromkeys(range(6, 12), "b")
    assert site.told() == {"web": ([9, 10, 11], [3, 4, 5], False)}
    assert site.told() == {"web": ([6, 7, 8], [1, 2], False)}
    assert site.told() == {}


def test_what_only_a_lost_report_told_is_told_as_gone_if_it_went() -> None:
    """The service may have taken the report; of such a point it learned nothing more for up to twelve hours."""
    site = Site({"web": {6: "a", 7: "b"}})
    site.told()
    site.lists["web"] = {6: "a", 7: "b", 8: "c"}
    site.told()
    site.reporter.forget_sent()
    site.lists["web"] = {6: "a", 7: "b", 9: "8 and 9"}
    assert site.told() == {"web": ([9], [8], False)}
    site.reporter.forget_sent()
    assert site.told() == {"web": ([9], [8], False)}
    assert site.told() == {}


def test_points_of_lost_reports_that_went_are_told_even_if_one_report_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site({"mail": {1: "a"}, "web": {1: "a"}})
    site.told()
    site.lists["web"] = {1: "a", 2: "b", 3: "c"}
    site.told()
    site.reporter.forget_sent()
    site.lists["web"] = {1: "a"}
    monkeypatch.setattr(point_lists, "WHOLE_POINTS", 0)
    monkeypatch.setattr(point_lists, "LEAST_POINTS", 1)
    assert [site.told() for _ in range(3)] == [{"web": ([], [3], False)}, {"web": ([], [2], False)}, {}]


@pytest.mark.parametrize("later", [timedelta(minutes=1), timedelta(hours=12, minutes=1)], ids=str)
def test_a_later_whole_list_whose_report_was_lost_is_told_again(later: timedelta) -> None:
    site = Site({"web": {1: "a"}})
    site.told()
    if later > timedelta(hours=1):
        site.now += timedelta(minutes=1)
        site.told()
    site.now = NOW + later
    assert site.told() == {"web": ([1], [], True)}
    site.reporter.forget_sent()
    assert site.told() == {"web": ([1], [], True)}
    assert site.told() == {}


def test_after_a_long_absence_of_the_service_the_list_is_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site({"web": {1: "a"}})
    site.told()
    site.told()
    monkeypatch.setattr(point_lists, "WHOLE_POINTS", 3)
    for number in range(2, 7):
        site.lists["web"] = {number: "a"}
        site.told()
        site.reporter.forget_sent()
    assert site.told() == {"web": ([6], [], True)}
