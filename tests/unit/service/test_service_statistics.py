"""An item's figures: counted once whatever is restarted, by the minute and by the hour, and what waits at each hop."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from secondsite.model.manifest import format_time
from secondsite.service.health.vocabulary import Step
from secondsite.service.health.watch import HealthWatch
from secondsite.service.store import samples
from secondsite.service.store.samples import Sample
from secondsite.service.usecases import reports, views
from secondsite.service.usecases.statistics import rpo_history, statistics
from support.service_world import World


class Source:
    """A source that runs cycles; each changes 1000 bytes, ships 400 and takes 2 s."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.counters = {"cycles": 0, "failed_cycles": 0, "bytes_changed": 0, "bytes_shipped": 0}
        self.cycles: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.sequence = world.sequence

    def cycle(self, *, changed: int = 1000, seconds: float = 2.0, kind: str = "delta") -> None:
        self.sequence += 1
        time = format_time(self.world.clock())
        self.points.append(
            {"sequence": self.sequence, "epoch": 1, "time": time, "digest": f"{self.sequence:064x}"}
        )
        self.counters["cycles"] += 1
        self.counters["bytes_changed"] += changed
        self.counters["bytes_shipped"] += changed * 2 // 5
        self.cycles.append(
            {
                "kind": kind,
                "sequence": self.sequence,
                "seconds": seconds,
                "bytes_changed": changed,
                "bytes_shipped": changed * 2 // 5,
            }
        )

    def tell(self, **entry: Any) -> None:
        item = self.world.item()
        points, self.points = {item.id: {"points": self.points}}, []
        reports.take_report(self.world.ctx, item.journal_node_id, {"points": points})
        usual = {"item": item.id, "role": "source", "epoch": item.epoch, "phase": "idle", "error": None}
        told = {"counters": dict(self.counters), "cycles": self.cycles[-12:]}
        reports.take_report(self.world.ctx, item.source_node_id, {"items": [{**usual, **told, **entry}]})


def run(world: World, source: Source, watch: HealthWatch, minutes: float, *, every_s: float = 5) -> None:
    """Run cycles; the service looks every ten seconds."""
    for number in range(round(minutes * 60 / every_s)):
        world.clock.turn(seconds=every_s)
        source.cycle()
        if number % round(10 / every_s) == 0:
            source.tell()
            watch.look()
    source.tell()
    watch.look()


@pytest.fixture
def source(world: World) -> Source:
    world.protected()
    return Source(world)


def figures(world: World) -> dict[str, Any]:
    return statistics(world.ctx, "web-1")


def test_cycles_sizes_and_times_are_counted(world: World, source: Source) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    run(world, source, watch, 4)
    source.cycle(changed=50_000, seconds=4.5)
    source.counters["failed_cycles"] += 3
    source.counters["tracking_lost"] = 1
    run(world, source, watch, 2)
    watch.close()
    found = figures(world)
    assert found["cycles"] == {"expected": 72, "done": 73, "missed": 0, "missed_share": 0.0, "failed": 3}
    assert found["bytes_changed"] == {"total": 122_000, "average": 122_000 / 73, "largest": 50_000}
    assert found["bytes_shipped"]["largest"] == 20_000
    assert found["cycle_seconds"] == {"average": pytest.approx((72 * 2 + 4.5) / 73), "largest": 4.5}
    assert (found["tracking_lost"], found["resyncs"]) == (1, 0)


def test_what_happened_while_the_service_was_down_is_counted_once(world: World, source: Source) -> None:
    first = HealthWatch(world.ctx)
    first.look()
    run(world, source, first, 3)
    # Killed: the minute that had begun was not written. Ten minutes later another one looks.
    for _ in range(10 * 12):
        world.clock.turn(seconds=5)
        source.cycle()
    source.tell()
    second = HealthWatch(world.ctx)
    second.look()
    run(world, source, second, 1)
    second.close()
    third = HealthWatch(world.ctx)
    third.look()
    third.close()
    found = figures(world)["cycles"]
    assert (found["done"], found["expected"], found["missed"]) == (14 * 12, 14 * 12, 0)


def test_cycles_that_did_not_come_are_missed_whatever_the_node_says(world: World, source: Source) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    run(world, source, watch, 6)
    for _ in range(2 * 12):
        world.clock.turn(seconds=5)
        watch.look()
    watch.close()
    found = figures(world)["cycles"]
    assert (found["expected"], found["missed"]) == (96, 24)
    assert found["missed_share"] == pytest.approx(0.25)


def test_a_counter_that_went_back_counts_on_from_there(world: World, source: Source) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    run(world, source, watch, 2)
    source.counters["cycles"] -= 5
    source.tell()
    watch.look()
    source.counters["cycles"] += 2
    source.tell()
    watch.look()
    watch.close()
    assert figures(world)["cycles"]["done"] == 26


def test_an_initial_replication_is_no_cycle(world: World, source: Source) -> None:
    source.cycle(changed=1 << 30, seconds=600, kind="initial")
    source.cycle()
    source.tell()
    watch = HealthWatch(world.ctx)
    watch.look()
    watch.close()
    found = figures(world)
    assert found["cycles"]["done"] == 1
    assert found["bytes_changed"] == {"total": 1000, "average": 1000.0, "largest": 1000}
    assert found["cycle_seconds"]["largest"] == 2.0


def test_the_rpo_is_known_now_and_over_time_and_survives_a_restart(world: World, source: Source) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    run(world, source, watch, 2)
    for _ in range(8):
        world.clock.turn(seconds=5)
        watch.look()
    watch.close()
    found = figures(world)["rpo"]
    assert (found["now_s"], found["largest_s"], found["threshold_s"], found["copy_frequency_s"]) == (
        40.0,
        40.0,
        60,
        5,
    )
    assert found["median_s"] == 0.0
    assert found["percentile_95_s"] == 40.0
    world.clock.turn(seconds=10)
    again = HealthWatch(world.ctx)
    again.look()
    again.close()
    assert figures(world)["rpo"]["now_s"] == 50.0
    assert figures(world)["rpo"]["largest_s"] == 50.0


def test_minutes_become_hours_and_old_ones_go(world: World, source: Source) -> None:
    item = world.item().id
    now = world.clock().replace(minute=30)
    with world.store.transaction() as tx:
        for hours in range(1, 30):
            begin = now.replace(minute=0, second=0) - timedelta(hours=hours)
            for minute in (0, 59):
                at = begin + timedelta(minutes=minute)
                sample = Sample(item, Step.MINUTE, at, 1.0 + minute, 2.0 + minute, 12.0, 11, bytes_changed=5)
                samples.add(tx, sample)
        samples.sum_up(tx, now)
        samples.sum_up(tx, now)
        hour = samples.listed(tx, item, Step.HOUR, now - timedelta(days=30))
        minutes = samples.listed(tx, item, Step.MINUTE, now - timedelta(days=30))
    assert len(hour) == 25
    assert {(one.cycles, one.expected, one.rpo_largest_s, one.bytes_changed) for one in hour} == {
        (22, 24.0, 61.0, 10)
    }
    assert min(one.time for one in minutes) >= now - timedelta(hours=25)
    world.clock.turn(days=31)
    with world.store.transaction() as tx:
        samples.sum_up(tx, world.clock())
    assert rpo_history(world.ctx, "web-1", Step.HOUR) == []


def test_what_waits_at_each_hop(world: World, source: Source) -> None:
    item = world.item()
    journal = {
        "bytes": 5000,
        "points": 9,
        "free": 100,
        "total": 200,
        "runway_s": 7200,
        "to_fold": {"points": 3, "bytes": 700, "eta_s": None},
    }
    entry = {"item": item.id, "role": "target", "epoch": 1, "journal": journal}
    reports.take_report(world.ctx, item.target_node_id, {"items": [entry]})
    source.tell(hops={"source": {"bytes": 4096, "eta_s": 2.0}, "link": {"rate": 2048}})
    found = figures(world)
    assert found["hops"]["source"] == {"bytes": 4096, "eta_s": 2.0, "estimated": False, "lag_s": 0.0}
    assert found["hops"]["link"] == {"rate": 2048}
    assert found["hops"]["target"] == {"points": 3, "bytes": 700, "eta_s": None}
    assert found["journal"]["runway_s"] == 7200


def test_between_cycles_the_sources_backlog_is_an_estimate(world: World, source: Source) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    run(world, source, watch, 4)
    world.clock.turn(seconds=30)
    source.tell(hops=None)
    watch.look()
    watch.close()
    hop = figures(world)["hops"]["source"]
    assert hop["estimated"]
    assert hop["lag_s"] == 30.0
    assert (
        0.7 * 6000 <= hop["bytes"] <= 6000
    )  # 200 bytes a second; the minute that has begun counts as a whole one


def test_too_many_missed_cycles_are_a_warning(world: World, source: Source) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    run(world, source, watch, 4, every_s=10)
    watch.close()
    found = views.item_view(world.ctx, "web-1")["health"]["reasons"]
    assert [(reason["severity"], reason["code"]) for reason in found] == [("warning", "cycles-missed")]
    assert "50%" in found[0]["message"]


def test_an_end_without_a_database_ends_the_watch_all_the_same(world: World, source: Source) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    world.clock.turn(seconds=5)
    source.cycle()
    source.tell()
    watch.look()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world.store), "transaction", lambda _store: 1 / 0)
        watch.close()
    again = HealthWatch(world.ctx)
    again.look()
    again.close()
    assert figures(world)["cycles"]["done"] == 1
