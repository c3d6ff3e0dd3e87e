"""The list of what is wrong now: since when, one event at the beginning and one at the end, sorted for whoever reads it."""

from __future__ import annotations

from typing import Any

from secondsite.service.health.keeper import keep
from secondsite.service.health.watch import HealthWatch
from secondsite.service.store import events, health, nodes
from secondsite.service.usecases import reports, views
from secondsite.service.usecases.health import health_errors
from support.service_node import until
from support.service_world import World

ERROR = {"code": "unavailable", "message": "no answer", "retry": "later"}


def tell(world: World, **entry: Any) -> None:
    item = world.item()
    usual = {"item": item.id, "role": "source", "epoch": item.epoch, "phase": "idle", "error": None}
    reports.take_report(world.ctx, item.source_node_id, {"items": [{**usual, **entry}]})


def kept(world: World) -> dict[str, Any]:
    with world.store.reading() as tx:
        return {row.code: row for row in health.listed(tx)}


def told(world: World, code: str) -> list[str]:
    with world.store.reading() as tx:
        return [event.code for event in events.listed(tx, after=0) if event.code.startswith(code)]


def settled(world: World) -> None:
    world.protected()
    world.clock.turn(seconds=10)
    tell(world)
    keep(world.ctx)


def test_an_error_keeps_the_time_when_it_began_and_goes_when_it_ends(world: World) -> None:
    settled(world)
    began = world.clock()
    tell(world, phase="waiting", error=ERROR)
    keep(world.ctx)
    world.clock.turn(seconds=20)
    tell(world, phase="waiting", error=ERROR | {"message": "no answer after 20 s"})
    keep(world.ctx)
    assert kept(world)["cannot-send"].since == began
    shown = {error["code"]: error for error in views.item_view(world.ctx, "web-1")["health_errors"]}
    assert shown["cannot-send"]["since"] == began
    assert "no answer after 20 s" in shown["cannot-send"]["message"]
    tell(world)
    keep(world.ctx)
    assert "cannot-send" not in kept(world)


def test_a_short_fault_writes_no_event_and_a_lasting_one_two(world: World) -> None:
    settled(world)
    tell(world, phase="waiting", error=ERROR)
    keep(world.ctx)
    world.clock.turn(seconds=29)
    tell(world)
    keep(world.ctx)
    assert told(world, "cannot-send") == []
    tell(world, phase="waiting", error=ERROR)
    keep(world.ctx)
    world.clock.turn(seconds=31)
    for _ in range(3):
        keep(world.ctx)
    assert told(world, "cannot-send") == ["cannot-send"]
    tell(world)
    for _ in range(3):
        keep(world.ctx)
    assert told(world, "cannot-send") == ["cannot-send", "cannot-send-over"]


def test_a_look_that_finds_nothing_new_writes_nothing(world: World) -> None:
    settled(world)
    world.clock.turn(seconds=70)
    keep(world.ctx)
    before = kept(world)
    assert "rpo" in before
    world.clock.turn(seconds=5)
    keep(world.ctx)
    assert kept(world) == before


def test_information_makes_nothing_unhealthy(world: World) -> None:
    settled(world)
    view = views.item_view(world.ctx, "web-1")
    assert view["health"] == {"level": "normal", "reasons": []}
    assert [error["code"] for error in view["health_errors"]] == ["test-due"]


def test_the_vaults_list_has_the_worst_first_and_names_where(world: World) -> None:
    settled(world)
    world.clock.turn(minutes=10)
    world.inventory("host-ams", world.vm)
    with world.store.transaction() as tx:
        nodes.change(tx, world.node("host-rtm"), silent=True)
    keep(world.ctx)
    found = health_errors(world.ctx)
    assert [(entry["level"], entry["code"], entry["machines"]) for entry in found] == [
        ("critical", "node-silent", 1),
        ("critical", "report-missing", 1),
        ("critical", "rpo", 1),
        ("information", "test-due", 1),
        ("information", "nobody-told", 0),
    ]
    silent = found[0]
    assert sorted((where["subject"], where["name"]) for where in silent["where"]) == [
        ("item", "web-1"),
        ("node", "host-rtm"),
    ]
    assert silent["since"] == world.clock()
    assert silent["possible_causes"]
    assert silent["recommended_action"]


def test_the_watch_looks_until_it_is_closed_and_outlives_what_it_meets(world: World) -> None:
    settled(world)
    clock, failed = world.clock, []

    def broken() -> Any:
        failed.append(1)
        raise RuntimeError("no clock")

    watch = HealthWatch(world.ctx, 0.01)
    object.__setattr__(world.ctx, "clock", broken)
    watch.start()
    until(lambda: len(failed) > 1, "a second look")
    clock.turn(seconds=70)
    object.__setattr__(world.ctx, "clock", clock)
    until(lambda: "rpo" in kept(world), "the list to be kept")
    watch.close()
