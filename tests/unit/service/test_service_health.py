"""What an item's health says when its nodes say something else than the service believes."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.model.item import Operation
from secondsite.service.monitor import look
from secondsite.service.store import events
from secondsite.service.usecases import operations, reports, views
from support.service_world import ME, World


def tell(world: World, side: str, **entry: Any) -> None:
    item = world.item()
    node = item.source_node_id if side == "source" else item.target_node_id
    role = {"role": side, "epoch": item.epoch, "phase": "idle", "error": None}
    reports.take_report(world.ctx, node, {"items": [{"item": item.id, **role, **entry}]})


def reasons(world: World) -> list[tuple[str, str]]:
    found = views.item_view(world.ctx, "web-1")["health"]["reasons"]
    return [(reason["severity"], reason["code"]) for reason in found]


def settled(world: World) -> None:
    world.protected()
    world.clock.turn(seconds=10)


def test_nodes_that_say_what_the_service_believes_are_healthy(world: World) -> None:
    settled(world)
    tell(world, "source")
    tell(world, "target")
    assert reasons(world) == []


def test_a_source_that_stopped_or_fails_is_critical(world: World) -> None:
    settled(world)
    tell(world, "source", phase="stopped")
    assert reasons(world) == [("critical", "replication-stopped")]
    tell(world, "source", phase="waiting", error={"code": "no_space", "message": "full", "retry": "later"})
    assert reasons(world) == [("critical", "cannot-send")]


def test_a_living_source_that_says_nothing_of_the_item_is_critical(world: World) -> None:
    item = world.protected()
    tell(world, "source")
    world.clock.turn(seconds=59)
    world.point(item)
    assert reasons(world) == []
    world.clock.turn(seconds=2)
    assert reasons(world) == [("critical", "report-missing")]
    look(world.ctx)  # silent by now, and that is the reason then
    assert ("critical", "report-missing") not in reasons(world)
    reports.sign_of_life(world.ctx, item.source_node_id)
    assert ("critical", "report-missing") in reasons(world)


@pytest.mark.parametrize(
    ("side", "entry"),
    [
        ("source", {"role": "standby"}),
        ("source", {"role": "prepared"}),
        ("source", {"epoch": 2}),
        ("target", {"role": "active"}),
        ("target", {"epoch": 7}),
    ],
    ids=str,
)
def test_a_node_in_another_role_or_epoch_is_inconsistent_and_told_once(
    world: World, side: str, entry: dict[str, Any]
) -> None:
    settled(world)
    tell(world, side, **entry)
    assert reasons(world) == [("critical", "inconsistent")]
    message = views.item_view(world.ctx, "web-1")["health"]["reasons"][0]["message"]
    assert str(next(iter(entry.values()))) in message
    assert "find out where the machine runs" in message
    look(world.ctx)
    look(world.ctx)
    with world.store.reading() as tx:
        told = [event for event in events.listed(tx) if event.code == "inconsistent"]
    assert [event.severity for event in told] == ["critical"]


def test_a_report_from_before_the_end_of_an_operation_is_not_held_against_the_node(world: World) -> None:
    world.protected()
    tell(world, "source", role="prepared", epoch=1)
    assert reasons(world) == []


def test_after_a_failover_the_target_is_active_and_the_old_side_stands_by(world: World) -> None:
    world.protected()
    job = operations.start_operation(world.ctx, ME, "web-1", Operation.PLANNED_FAILOVER)
    world.run(job.id)
    world.clock.turn(seconds=10)
    tell(world, "source", role="standby")
    tell(world, "target", role="active")
    assert reasons(world) == [("warning", "unprotected")]
    tell(world, "source", role="source")
    assert reasons(world)[0] == ("critical", "inconsistent")
