"""Several items at once: one report changes each of them as it says, and a list in pages shows each once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.model.ids import ItemId
from secondsite.service.context import Actor
from secondsite.service.health.keeper import keep
from secondsite.service.store import items, points
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
