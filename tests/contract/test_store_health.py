"""What the store promises of health errors, figures and notices, on every database that it supports."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from secondsite.errors import ConflictError
from secondsite.model.ids import ItemId, SiteId
from secondsite.service.health.vocabulary import Level, Step, Subject
from secondsite.service.store import events, health, metrics, notices, points, samples, vaults
from secondsite.service.store.database import Store
from secondsite.service.store.health import Kept
from secondsite.service.store.records import Point, Site
from secondsite.service.store.samples import Meter, Sample
from secondsite.service.store.tables import UtcTime, cloud_mappings, clouds, items, nodes, policies
from secondsite.service.vocabulary import Severity

NOW = datetime(2026, 11, 23, 5, 30, tzinfo=UTC)
ITEM = ItemId("i")


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    found = Store(migrated_url)
    with found.transaction() as tx:
        vaults.create_site(tx, Site(SiteId("s"), "s", NOW))
        _add_item(tx.execute)
    yield found
    found.close()


def _add_item(execute: object) -> None:
    """Add the one item with what it refers to; columns that do not matter here get what their type wants."""
    assert callable(execute)
    for node in ("n1", "n2"):
        execute(sa.insert(nodes).values(_filled(nodes, id=node, name=node, site_id="s", roles=[])))
    execute(sa.insert(policies).values(_filled(policies, id="p", name="p", settings={})))
    for cloud in ("c1", "c2"):
        execute(sa.insert(clouds).values(_filled(clouds, id=cloud, name=cloud, site_id="s")))
    mapping = {"id": "m", "source_cloud_id": "c1", "target_cloud_id": "c2", "policy_id": "p"}
    execute(sa.insert(cloud_mappings).values(_filled(cloud_mappings, **mapping)))
    item = {
        "id": ITEM,
        "cloud_mapping_id": "m",
        "state": "protected",
        "test_state": "none",
        "direction": "primary-to-recovery",
        "epoch": 1,
        "primary_node_id": "n1",
        "recovery_node_id": "n2",
        "journal_node_id": "n2",
    }
    execute(sa.insert(items).values(_filled(items, **item)))


def _filled(table: sa.Table, **values: object) -> dict[str, object]:
    usual = {str: "x", bytes: b"x", int: 1, bool: False, float: 0.0, datetime: NOW, dict: {}}
    wanted = [column for column in table.columns if not column.nullable and column.name not in values]
    made = {column.name: usual.get(_python(column), {}) for column in wanted if column.default is None}
    return {**made, **values}


def _python(column: sa.Column[object]) -> type:
    if isinstance(column.type, UtcTime):
        return datetime
    try:
        return column.type.python_type
    except NotImplementedError:
        return dict


def sample(minute: int, step: Step = Step.MINUTE, **values: float) -> Sample:
    return Sample(ITEM, step, NOW.replace(minute=minute), **values)  # type: ignore[arg-type]


# -- health errors -----------------------------------------------------------------------------------------


def test_an_error_is_kept_once_with_the_time_when_it_began(store: Store) -> None:
    kept = Kept(Subject.ITEM, ITEM, "rpo", Level.CRITICAL, "old", NOW, False)
    worse = Kept(Subject.ITEM, ITEM, "rpo", Level.CRITICAL, "older", NOW, True)
    other = Kept(Subject.NODE, "n1", "node-silent", Level.CRITICAL, "away", NOW, True)
    with store.transaction() as tx:
        for each in (kept, worse, other):
            health.put(tx, each)
    with store.reading() as tx:
        assert sorted(health.listed(tx), key=lambda each: each.subject) == [worse, other]
        assert health.listed(tx, subject=Subject.ITEM, only=[ITEM]) == [worse]
        assert sorted(metrics.errors_by_code(tx)) == [("node-silent", "critical", 1), ("rpo", "critical", 1)]
    with store.transaction() as tx:
        health.remove(tx, [worse.key])
    with store.reading() as tx:
        assert health.listed(tx) == [other]


def test_points_that_health_asks_for_are_found(store: Store) -> None:
    with store.transaction() as tx:
        points.add(
            tx,
            [
                Point(ITEM, 1, 1, NOW - timedelta(hours=2), "d", "delta", "application", None),
                Point(ITEM, 2, 1, NOW, "d", "delta", "application", None),
                Point(ITEM, 3, 1, NOW, "d", "diverged", "crash", None),
                Point(ITEM, 4, 1, NOW, "d", "delta", "crash", None),
            ],
        )
    with store.reading() as tx:
        assert health.newest_application_points(tx) == {ITEM: NOW}
        assert health.diverged_points(tx) == {ITEM: 3}


# -- figures -----------------------------------------------------------------------------------------------


def test_samples_of_the_same_minute_are_added_up(store: Store) -> None:
    with store.transaction() as tx:
        samples.add(tx, sample(1, expected=6.0, cycles=5, bytes_changed=1 << 40, rpo_largest_s=7.5))
        samples.add(tx, sample(1, expected=6.0, cycles=6, changed_largest=1 << 50, rpo_largest_s=3.5))
        samples.add(tx, sample(2, expected=12.0, cycles=12))
    with store.reading() as tx:
        found = samples.listed(tx, ITEM, Step.MINUTE, NOW.replace(minute=0))
        assert [(one.cycles, one.expected, one.bytes_changed) for one in found] == [
            (11, 12.0, 1 << 40),
            (12, 12.0, 0),
        ]
        assert (found[0].rpo_largest_s, found[0].changed_largest) == (7.5, 1 << 50)
        assert samples.shares(tx, NOW.replace(minute=0)) == {ITEM: (24.0, 23)}
        assert samples.shares(tx, NOW.replace(minute=1), [ITEM]) == {ITEM: (12.0, 12)}


def test_hours_are_summed_up_once_and_old_samples_go(store: Store) -> None:
    later = NOW + timedelta(hours=2)
    with store.transaction() as tx:
        samples.add(tx, sample(1, cycles=5))
        samples.add(tx, sample(2, cycles=6))
        for _ in range(2):
            samples.sum_up(tx, later)
    with store.reading() as tx:
        (hour,) = samples.listed(tx, ITEM, Step.HOUR, NOW - timedelta(hours=1))
        assert (hour.cycles, hour.time) == (11, NOW.replace(minute=0))
    with store.transaction() as tx:
        samples.sum_up(tx, NOW + timedelta(hours=27))
        assert samples.listed(tx, ITEM, Step.MINUTE, NOW - timedelta(days=1)) == []
        samples.sum_up(tx, NOW + timedelta(days=31))
        assert samples.listed(tx, ITEM, Step.HOUR, NOW - timedelta(days=1)) == []


def test_only_what_has_minutes_and_no_hour_is_to_be_summed_up(store: Store) -> None:
    """Not every item for each hour of a day: a vault may be young, the service may have been away."""
    later = NOW + timedelta(hours=2)
    with store.transaction() as tx:
        assert samples.unsummed(tx, later) == []
        samples.add(tx, sample(1, cycles=5))
        assert samples.unsummed(tx, later) == [(NOW.replace(minute=0), [ITEM])]
        samples.sum_up(tx, later)
        assert samples.unsummed(tx, later) == []


def test_an_hour_that_is_missing_is_made_beside_others_that_are_there(store: Store) -> None:
    """The minutes of hours that were summed up already are not looked at again."""
    with store.transaction() as tx:
        samples.add(tx, sample(1, cycles=5))
        samples.sum_up(tx, NOW + timedelta(hours=1))
        samples.add(tx, sample(2, cycles=7))  # too late for its hour
        later = replace(sample(1, cycles=6), time=NOW.replace(minute=3) + timedelta(hours=2))
        samples.add(tx, later)
        samples.sum_up(tx, NOW + timedelta(hours=4))
        hours = samples.listed(tx, ITEM, Step.HOUR, NOW - timedelta(hours=1))
    begin = NOW.replace(minute=0)
    assert [(hour.time, hour.cycles) for hour in hours] == [(begin, 5), (begin + timedelta(hours=2), 6)]


def test_where_the_counting_stands_is_kept_per_item(store: Store) -> None:
    first = Meter(ITEM, "n1", {"cycles": 3}, None, NOW)
    second = Meter(ITEM, "n2", {"cycles": 9}, 12, NOW + timedelta(minutes=1))
    with store.transaction() as tx:
        samples.put_meter(tx, first)
        samples.put_meter(tx, second)
    with store.reading() as tx:
        assert samples.find_meters(tx) == {ITEM: second}


# -- notices -----------------------------------------------------------------------------------------------


def enable(store: Store, *names: str) -> None:
    with store.transaction() as tx:
        notices.put_settings(tx, enabled=True, severities=["critical"], per_minute=5, now=NOW)
        for name in names:
            notices.add_receiver(tx, name, name, f"json://{name}", NOW)


def happen(store: Store, count: int = 1) -> None:
    with store.transaction() as tx:
        for _ in range(count):
            events.add(tx, events.NewEvent(NOW, "c", "m", Severity.CRITICAL))


def due(store: Store, receiver: str, after_s: float = 0) -> list[int]:
    with store.reading() as tx:
        return [event.id for event in notices.due(tx, receiver, NOW + timedelta(seconds=after_s))]


def test_the_outbox_holds_each_event_once_for_each_receiver(store: Store) -> None:
    happen(store)
    enable(store, "a", "b")
    happen(store, 2)
    with store.transaction() as tx:
        assert notices.unseen(tx)
        assert notices.fill(tx, NOW) == 4
        assert notices.fill(tx, NOW) == 0
        assert not notices.unseen(tx)
        assert notices.pending(tx) == {"a": 2, "b": 2}
    first, second = due(store, "a")
    with store.transaction() as tx:
        notices.sent(tx, "a", [first], NOW)
        notices.sent(tx, "a", [first], NOW)
        notices.not_sent(tx, "a", [second], NOW, "no")
    assert due(store, "a") == []
    assert due(store, "a", notices.RETRY_S[0]) == [second]
    assert due(store, "b") == [first, second]
    with store.reading() as tx:
        found = {each.name: each for each in notices.receivers(tx)}
        assert (found["a"].sent, found["a"].failed, found["a"].last_error) == (1, 0, "no")
        assert health.receivers(tx) == (2, {"a": "no"})


def test_two_fillings_at_the_same_time_double_nothing(store: Store) -> None:
    enable(store, "a")
    happen(store, 20)
    failures: list[BaseException] = []
    ready = threading.Barrier(2)

    def fill() -> None:
        ready.wait()
        try:
            with store.transaction() as tx:
                notices.fill(tx, NOW)
        except ConflictError:
            pass  # the other one was first: the next look finds nothing to do
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=fill) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(due(store, "a")) == 20


def test_a_receiver_that_goes_takes_its_notices_along(store: Store) -> None:
    enable(store, "a", "b")
    happen(store)
    with store.transaction() as tx:
        notices.fill(tx, NOW)
        notices.remove_receiver(tx, "a")
        assert notices.pending(tx) == {"b": 1}
    with pytest.raises(ConflictError), store.transaction() as tx:
        notices.add_receiver(tx, "c", "b", "json://x", NOW)


def test_ended_notices_are_pruned_out_of_reach_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    enable(store, "a")
    happen(store, 3)
    with store.transaction() as tx:
        notices.fill(tx, NOW)
    with store.transaction() as tx:
        notices.sent(tx, "a", due(store, "a"), NOW)
    later = NOW + timedelta(days=8)
    with store.transaction() as tx:
        assert notices.prune(tx, later) == 0
        monkeypatch.setattr(notices, "REACH", 1)
        assert notices.prune(tx, later) == 2
