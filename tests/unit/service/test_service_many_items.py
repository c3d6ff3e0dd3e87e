"""Several items at once: one report changes each of them as it says, and a list in pages shows each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.model.ids import ItemId
from secondsite.service import monitor
from secondsite.service.context import Actor
from secondsite.service.health import keeper
from secondsite.service.health import watch as watching
from secondsite.service.health.keeper import keep
from secondsite.service.health.vocabulary import Step
from secondsite.service.health.watch import HealthWatch
from secondsite.service.store import health, items, points, samples
from secondsite.service.store.records import Item
from secondsite.service.usecases import protect, reports, views
from secondsite.service.vocabulary import Role
from support.service_node import machine
from support.service_world import World

ME = Actor("test", Role.CONTRIBUTOR)
NAMES = ("db-1", "mail", "web-1")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.two_sites()
    made.inventory("host-ams", *(machine(name) for name in NAMES))
    for name in NAMES:
        made.run(protect.protect(made.ctx, ME, name).id)
    yield made
    made.close()


def listed(world: World) -> dict[str, Item]:
    with world.store.reading() as tx:
        return {item.name: item for item in items.listed(tx)}


def known(world: World, item: ItemId) -> dict[int, str]:
    with world.store.reading() as tx:
        return points.digests(tx, item)


def point(world: World, sequence: int, digest: str) -> dict[str, Any]:
    return {"sequence": sequence, "time": world.clock.now.isoformat(), "epoch": 1, "digest": digest}


def test_one_report_changes_each_item_as_it_says(world: World) -> None:
    db, mail, web = listed(world).values()
    before = known(world, web.id)
    entries = [
        {
            "item": db.id,
            "role": "target",
            "phase": "idle",
            "sequence": 7,
            "point_time": world.clock.now.isoformat(),
        },
        {"item": mail.id, "role": "target", "phase": "other"},
    ]
    told = {
        db.id: {"points": [point(world, 6, "a" * 64), point(world, 7, "b" * 64)], "complete": True},
        mail.id: {
            "points": [point(world, 6, "c" * 64)],
            "gone": list(known(world, mail.id)),
            "complete": False,
        },
    }
    reports.take_report(world.ctx, db.target_node_id, {"items": entries, "points": told})
    after = listed(world)
    assert known(world, db.id) == {6: "a" * 64, 7: "b" * 64}
    assert known(world, mail.id) == {6: "c" * 64}
    assert known(world, web.id) == before
    assert [after[name].last_sequence for name in NAMES] == [7, 6, web.last_sequence]
    assert [(after[name].target_report or {}).get("phase") for name in NAMES[:2]] == ["idle", "other"]
    assert after["web-1"].target_report == web.target_report


def test_pages_show_every_item_once_in_the_order_of_the_whole_list(world: World) -> None:
    whole = views.item_views(world.ctx)
    first = views.item_views(world.ctx, limit=2)
    rest = views.item_views(world.ctx, after=first[-1]["id"], limit=2)
    assert [*first, *rest] == whole
    assert views.item_views(world.ctx, after=whole[-1]["id"], limit=2) == []


def test_the_vault_counts_levels_as_the_items_show_them_also_between_two_looks(world: World) -> None:
    keep(world.ctx)
    world.clock.turn(seconds=5)
    error = {"code": "x", "message": "broken"}
    item = listed(world)["mail"]
    entry = {"item": item.id, "role": "source", "phase": "delta", "error": error}
    reports.take_report(world.ctx, item.source_node_id, {"items": [entry]})
    keep(world.ctx)
    shown = [view["health"]["level"] for view in views.item_views(world.ctx)]
    counted = views.vault_view(world.ctx)["items"]["by_health"]
    assert counted == {level: shown.count(level) for level in shown}
    assert "critical" in counted


def test_the_vault_looks_for_itself_when_the_last_look_is_long_ago(world: World) -> None:
    keep(world.ctx)
    world.clock.turn(seconds=3600)
    shown = [view["health"]["level"] for view in views.item_views(world.ctx)]
    assert views.vault_view(world.ctx)["items"]["by_health"] == {level: shown.count(level) for level in shown}
    assert world.ctx.watched.of(world.clock()) is None
    assert world.ctx.watched.of(world.clock() - timedelta(hours=1)) is not None


def test_an_item_that_came_after_the_last_look_is_counted_by_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(world.ctx)
    looked = world.ctx.watched.of(world.clock())
    assert looked is not None
    item = listed(world)["mail"]
    entry = {
        "item": item.id,
        "role": "source",
        "phase": "delta",
        "error": {"code": "x", "message": "broken"},
    }
    reports.take_report(world.ctx, item.source_node_id, {"items": [entry]})
    others = {item_id: level for item_id, level in looked.levels.items() if item_id != item.id}
    world.ctx.watched.put(replace(looked, levels=others))
    levels = views.vault_view(world.ctx)["items"]["by_health"]
    assert (levels.pop("critical"), sum(levels.values())) == (1, 2)
    monkeypatch.setattr(items, "IDS_MAX", 0)  # too many to name them in a statement
    assert views.vault_view(world.ctx)["items"]["by_health"] == {"critical": 1, **levels}


def test_a_page_shows_the_health_that_the_whole_list_shows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"code": "x", "message": "broken"}
    item = listed(world)["mail"]
    entry = {"item": item.id, "role": "source", "phase": "delta", "error": error}
    reports.take_report(world.ctx, item.source_node_id, {"items": [entry]})
    keep(world.ctx)
    world.clock.turn(seconds=120)  # an error's `since` is older than now
    page = views.item_views(world.ctx, limit=2)
    monkeypatch.setattr(items, "IDS_MAX", 0)
    assert views.item_views(world.ctx, limit=2) == page
    assert page[1]["health"]["level"] == "critical"
    assert page[1]["health_errors"][0]["since"] < world.clock()


def test_nodes_are_listed_as_each_is_shown(world: World) -> None:
    shown = {view["name"]: view for view in views.node_views(world.ctx)}
    assert list(shown.values()) == [views.node_view(world.ctx, name) for name in shown]
    assert {name: (view["vms"], view["items"]) for name, view in shown.items()}["host-ams"] == (3, 3)


def test_a_look_reads_the_items_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = HealthWatch(world.ctx)
    watch.look()
    reads: list[int] = []
    usual = items.listed

    def counted(*args: Any, **options: Any) -> list[Item]:
        reads.append(1)
        return usual(*args, **options)

    monkeypatch.setattr(items, "listed", counted)
    world.clock.turn(seconds=1)
    watch.look()
    assert len(reads) == 1


def test_what_befalls_many_items_at_once_is_told_of_each_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "PORTION", 2)
    monkeypatch.setattr(monitor, "PORTION", 2)
    began: list[int] = []
    usual = world.store.transaction
    monkeypatch.setattr(type(world.store), "transaction", lambda _store: began.append(1) or usual())
    for told in ("rpo-exceeded", "rpo-kept"):
        old = told == "rpo-exceeded"
        if old:
            world.clock.turn(seconds=3600)
        else:
            web = listed(world)["web-1"]
            fresh = {item.id: {"points": [point(world, 900, "f" * 64)]} for item in listed(world).values()}
            reports.take_report(world.ctx, web.target_node_id, {"points": fresh})
        for _ in range(2):
            began.clear()
            monitor.look(world.ctx)
            keep(world.ctx)
        assert began == []  # the second look had nothing to write
        assert [world.told(name).count(told) for name in NAMES] == [1, 1, 1]
        with world.store.reading() as tx:
            kept = sorted(row.subject_id for row in health.listed(tx) if row.code == "rpo")
        assert kept == (sorted(item.id for item in listed(world).values()) if old else [])


def test_figures_of_many_items_are_written_some_at_a_time_and_each_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PORTION", 2)
    monkeypatch.setattr(watching, "SUMMED_AT_ONCE", 2)
    watch = HealthWatch(world.ctx)
    cycles = {item.id: 10 * number for number, item in enumerate(listed(world).values(), 1)}
    for minute in range(1, 121):
        entries = [
            {"item": item, "role": "source", "phase": "idle", "counters": {"cycles": count * minute}}
            for item, count in cycles.items()
        ]
        reports.take_report(world.ctx, listed(world)["web-1"].source_node_id, {"items": entries})
        watch.look()
        world.clock.turn(seconds=60)
    watch.look()
    watch.look()  # an hour is summed up once
    with world.store.reading() as tx:
        kept = samples.find_meters(tx)
        begin = world.clock() - timedelta(hours=3)
        for item, count in cycles.items():
            assert kept[item].counters == {"cycles": count * 120}
            minutes = samples.listed(tx, item, Step.MINUTE, begin)
            assert sum(minute.cycles for minute in minutes) == count * 120
            hours = samples.listed(tx, item, Step.HOUR, begin)
            assert len(hours) == 2
            assert all(
                hour.cycles
                == sum(
                    minute.cycles
                    for minute in minutes
                    if hour.time <= minute.time < hour.time + timedelta(hours=1)
                )
                for hour in hours
            )
