"""Consistency groups in the service: who may be together, which points count, and all or none."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OperationRefusedError,
)
from secondsite.model.ids import ItemId
from secondsite.model.item import ItemState, Operation, TestState
from secondsite.model.manifest import format_time
from secondsite.service.store import commands, groups, items, jobs
from secondsite.service.store.records import Command, Item
from secondsite.service.usecases import group_views, operations, protect, reports, setup
from secondsite.service.usecases import groups as usecases
from secondsite.service.usecases.operations import Options
from support.service_node import machine
from support.service_world import ME, World, absent

NAMES = ("web-1", "web-2", "web-3")


@pytest.fixture
def shop(world: World) -> World:
    """Three protected items of one node, which answers orders about groups when the test says so."""
    world.answers["source.group"] = absent
    world.inventory("host-ams", world.vm, machine("web-2"), machine("web-3"))
    for name in NAMES:
        job = world.run(protect.protect(world.ctx, ME, name).id)
        assert job.error is None, job.error
    return world


def orders(world: World) -> list[Command]:
    """What nodes were told of groups, oldest first."""
    with world.store.reading() as tx:
        found = tx.execute(
            commands.commands.select()
            .where(commands.commands.c.kind == "source.group")
            .order_by(commands.commands.c.ordinal)
        )
        return list(found)  # type: ignore[arg-type]


def answer_all(world: World) -> None:
    """The nodes carry out what they were told of groups."""
    for order in orders(world):
        if order.state in ("pending", "delivered"):
            reports.take_result(world.ctx, order.node_id, order.id, result={}, error=None)


def point(world: World, item: Item, sequence: int, group: str | None, time: datetime | None = None) -> None:
    entry: dict[str, Any] = {
        "sequence": sequence,
        "epoch": item.epoch,
        "time": format_time(time or world.clock()),
        "digest": f"{sequence:064x}",
        "group": group,
    }
    reports.take_report(
        world.ctx, item.journal_node_id, {"points": {item.id: {"points": [entry], "complete": False}}}
    )


def cut(world: World, group: str, number: int, *names: str, sequence: int) -> None:
    """All named members seal a point of this cut."""
    for name in names:
        point(world, world.item(name), sequence, f"{group}:{number}")


def says(world: World, item: Item, group: object) -> None:
    """The item's source reports which group it is in."""
    entry = {"item": item.id, "role": "source", "epoch": 1, "phase": "idle", "group": group}
    reports.take_report(world.ctx, item.source_node_id, {"items": [entry]})


def ids(world: World, *names: str) -> list[ItemId]:
    return sorted(world.item(name).id for name in names)


# -- members -------------------------------------------------------------------------------------------------


def test_the_source_node_is_told_who_is_in_a_group(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    (order,) = orders(shop)
    assert order.node_id == shop.node("host-ams")
    assert order.args == {
        "group": group.id,
        "members": ids(shop, "web-1", "web-2"),
        "revision": 2,
        "number": 0,
    }
    changed = usecases.change(shop.ctx, "shop", ["web-3"], ["web-1"])
    assert changed.revision == 3
    assert orders(shop)[-1].args["members"] == ids(shop, "web-2", "web-3")
    usecases.delete(shop.ctx, "shop")
    last = orders(shop)[-1].args
    assert (last["members"], last["revision"]) == ([], 4)
    with pytest.raises(NotFoundError):
        group_views.group_view(shop.ctx, "shop")


def test_members_replicate_from_one_node_to_one_node_at_one_frequency(shop: World) -> None:
    shop.enrol("host-ams2", "ams")
    setup.create_cloud(shop.ctx, "cloud-ams2", "ams", ["host-ams2"])
    setup.create_policy(shop.ctx, "slow", {"copy_frequency_s": 300})
    setup.map_cloud(shop.ctx, "cloud-ams2", "cloud-rtm", "slow")
    shop.inventory("host-ams2", machine("far"))
    shop.run(protect.protect(shop.ctx, ME, "far").id)
    with pytest.raises(
        OperationRefusedError, match=r"source node \(far: host-ams2, web-1: host-ams\)"
    ) as refused:
        usecases.create(shop.ctx, "shop", ["web-1", "far"])
    assert "one host" in refused.value.hint
    with shop.store.transaction() as tx:
        items.change(tx, shop.item("far").id, primary_node_id=shop.node("host-ams"))
    with pytest.raises(OperationRefusedError, match="copy frequency"):
        usecases.create(shop.ctx, "shop", ["web-1", "far"])
    with shop.store.reading() as tx:
        assert groups.listed(tx) == []
    assert orders(shop) == []


def test_an_item_is_in_one_group_and_a_group_has_two_members(shop: World) -> None:
    usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    with pytest.raises(ConflictError, match="web-2 is in the group shop already"):
        usecases.create(shop.ctx, "other", ["web-2", "web-3"])
    with pytest.raises(ConflictError, match="already"):
        usecases.create(shop.ctx, "shop", ["web-1", "web-3"])
    with pytest.raises(InvalidInputError, match="two members"):
        usecases.create(shop.ctx, "alone", ["web-3"])
    with pytest.raises(InvalidInputError, match="two members"):
        usecases.change(shop.ctx, "shop", [], ["web-1"])
    with pytest.raises(NotFoundError, match="web-3 is not in the group"):
        usecases.change(shop.ctx, "shop", [], ["web-3"])
    # An item that is in the group is put in again: nothing to refuse.
    assert usecases.change(shop.ctx, "shop", ["web-1"], []).revision == 3


# -- what nodes say --------------------------------------------------------------------------------------------


def test_the_order_is_given_again_until_the_report_agrees(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    item = shop.item()
    says(shop, item, None)
    assert len(orders(shop)) == 1  # it has not answered the first one yet
    answer_all(shop)
    says(shop, item, None)  # it lost its state
    assert [order.args["revision"] for order in orders(shop)] == [2, 2]
    answer_all(shop)
    agreed = {"id": group.id, "revision": 2, "members": ids(shop, "web-1", "web-2")}
    says(shop, item, agreed)
    assert len(orders(shop)) == 2
    says(shop, item, {**agreed, "members": ids(shop, "web-1", "web-3")})
    assert len(orders(shop)) == 3


def test_a_group_that_is_gone_is_taken_from_who_still_has_it(shop: World) -> None:
    said = {"id": "aaaaaaaa-0000-4000-8000-000000000009", "revision": 7, "members": ids(shop, *NAMES)}
    says(shop, shop.item(), said)
    (order,) = orders(shop)
    assert (order.args["group"], order.args["members"], order.args["revision"]) == (said["id"], [], 8)


def test_a_disabled_member_leaves_the_others_together(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", NAMES)
    answer_all(shop)
    before = {"id": group.id, "revision": 2, "members": ids(shop, *NAMES)}
    shop.run(operations.start_operation(shop.ctx, ME, "web-3", Operation.DISABLE).id)
    says(shop, shop.item(), before)
    assert orders(shop)[-1].args["members"] == ids(shop, "web-1", "web-2")
    cut(shop, group.id, 5, "web-1", "web-2", sequence=100)
    assert [entry["number"] for entry in group_views.point_views(shop.ctx, "shop", 10)] == [5]


def test_a_torn_group_is_left_alone(shop: World) -> None:
    usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    answer_all(shop)
    with shop.store.transaction() as tx:
        items.change(tx, shop.item("web-2").id, direction="recovery-to-primary")
    says(shop, shop.item("web-1"), None)
    says(shop, shop.item("web-2"), None)
    assert len(orders(shop)) == 1
    view = group_views.group_view(shop.ctx, "shop")
    assert (view["together"], view["source_node"]) == (False, None)
    # All in the other direction: the node that is the source now gets it, and does not count from the start.
    with shop.store.transaction() as tx:
        groups.note_number(tx, view["id"], 41)
        items.change(tx, shop.item("web-1").id, direction="recovery-to-primary")
    says(shop, shop.item("web-1"), None)
    order = orders(shop)[-1]
    assert (order.node_id, order.args["number"]) == (shop.node("host-rtm"), 41)


# -- points ----------------------------------------------------------------------------------------------------


def test_a_group_point_is_one_that_every_member_has(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    cut(shop, group.id, 1, "web-1", "web-2", sequence=101)
    shop.clock.turn(seconds=5)
    cut(shop, group.id, 2, "web-1", sequence=102)
    shop.clock.turn(seconds=5)
    cut(shop, group.id, 3, "web-2", "web-1", sequence=103)
    points = group_views.point_views(shop.ctx, "shop", 10)
    assert [entry["number"] for entry in points] == [3, 1]
    assert points[0]["sequences"] == {"web-1": 103, "web-2": 103}
    shop.clock.turn(seconds=4)
    view = group_views.group_view(shop.ctx, "shop")
    assert (view["latest_point"]["number"], view["rpo_s"]) == (3, 4.0)
    # Retention gave one member's point up: the group point is gone, as a whole.
    item = shop.item("web-2")
    reports.take_report(
        shop.ctx,
        item.journal_node_id,
        {
            "points": {
                item.id: {
                    "points": [
                        {
                            "sequence": 101,
                            "time": format_time(shop.clock()),
                            "digest": f"{101:064x}",
                            "group": f"{group.id}:1",
                        }
                    ],
                    "complete": True,
                }
            }
        },
    )
    assert [entry["number"] for entry in group_views.point_views(shop.ctx, "shop", 10)] == [1]


def test_one_number_at_two_times_is_not_one_cut(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    cut(shop, group.id, 1, "web-1", sequence=101)
    shop.clock.turn(seconds=60)  # the node lost its memory and began to count again
    cut(shop, group.id, 1, "web-2", sequence=101)
    assert group_views.point_views(shop.ctx, "shop", 10) == []


def test_a_label_that_is_none_is_a_point_of_its_own(shop: World) -> None:
    for sequence, label in enumerate(("x", ":", "a:b", "a:-1", "a:99999999999", ""), start=200):
        point(shop, shop.item(), sequence, label)
    with shop.store.reading() as tx:
        assert groups.complete(tx, "a", [shop.item().id], limit=10) == []  # type: ignore[arg-type]


# -- operations ------------------------------------------------------------------------------------------------


def test_an_operation_begins_for_all_members_from_one_cut(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    point(shop, shop.item("web-1"), 100, None)
    cut(shop, group.id, 1, "web-1", "web-2", sequence=101)
    shop.clock.turn(seconds=5)
    point(shop, shop.item("web-2"), 102, f"{group.id}:2")
    point(shop, shop.item("web-1"), 105, f"{group.id}:2")
    shop.clock.turn(seconds=5)
    point(shop, shop.item("web-1"), 106, None)
    shop.started.clear()
    begun = usecases.start(shop.ctx, ME, "shop", Operation.UNPLANNED_FAILOVER, Options())
    assert begun.point is not None
    assert begun.point.number == 2
    assert [(job.item_name, job.parameters["sequence"]) for job in begun.jobs] == [
        ("web-1", 105),
        ("web-2", 102),
    ]
    assert shop.started == [job.id for job in begun.jobs]
    assert {shop.item(name).state for name in ("web-1", "web-2")} == {ItemState.FAILING_OVER_UNPLANNED}


def test_an_older_cut_is_named_by_its_number(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    for number in (1, 2):
        cut(shop, group.id, number, "web-1", "web-2", sequence=100 + number)
        shop.clock.turn(seconds=5)
    begun = usecases.start(shop.ctx, ME, "shop", Operation.TEST_FAILOVER, Options(), 1)
    assert {job.parameters["sequence"] for job in begun.jobs} == {101}
    with pytest.raises(NotFoundError, match="cut 7"):
        usecases.start(shop.ctx, ME, "shop", Operation.UNPLANNED_FAILOVER, Options(), 7)


def test_a_member_that_may_not_keeps_all_others_from_beginning(shop: World) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    cut(shop, group.id, 1, "web-1", "web-2", sequence=101)
    with shop.store.transaction() as tx:
        items.change(tx, shop.item("web-2").id, test_state=TestState.RUNNING.value)
    shop.started.clear()
    with pytest.raises(OperationRefusedError, match="web-2: test-failover is refused") as refused:
        usecases.start(shop.ctx, ME, "shop", Operation.TEST_FAILOVER, Options())
    assert "clean it up first" in refused.value.hint
    assert shop.item("web-1").test_state is TestState.NONE
    assert shop.started == []
    with shop.store.reading() as tx:
        assert not [job for job in jobs.unfinished(tx) if job.operation == "test-failover"]
    allowed = group_views.group_view(shop.ctx, "shop")["allowed_operations"]
    assert allowed["unplanned-failover"]["allowed"]
    assert allowed["test-failover"]["reason"].startswith("web-2: ")


def test_a_group_without_a_common_point_says_so(shop: World) -> None:
    usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    with pytest.raises(OperationRefusedError, match="no common point"):
        usecases.start(shop.ctx, ME, "shop", Operation.UNPLANNED_FAILOVER, Options())


def test_the_whole_way_of_a_group(shop: World, tmp_path: Path) -> None:
    group = usecases.create(shop.ctx, "shop", ["web-1", "web-2"])
    for number in (1, 2):
        cut(shop, group.id, number, "web-1", "web-2", sequence=100 + number)
        shop.clock.turn(seconds=5)
    shop.sequence = 102

    def run(operation: Operation, number: int | None = None) -> set[str]:
        begun = usecases.start(
            shop.ctx,
            ME,
            "shop",
            operation,
            Options(shutdown_source=operations.ShutdownSource.NO),
            number,
        )
        ended = [shop.run(job.id) for job in begun.jobs]
        assert [job.error for job in ended] == [None, None]
        return {shop.item(name).state.value for name in ("web-1", "web-2")}

    assert run(Operation.UNPLANNED_FAILOVER) == {"unplanned-commit-pending"}
    assert run(Operation.CHANGE_POINT, 1) == {"unplanned-commit-pending"}
    assert run(Operation.CANCEL) == {"protected"}
    assert run(Operation.UNPLANNED_FAILOVER, 1) == {"unplanned-commit-pending"}
    assert run(Operation.COMMIT) == {"committed"}
    assert group_views.point_views(shop.ctx, "shop", 10) == []
