"""Policies in the service: what is accepted, whom a change reaches, and what they decide."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.errors import InvalidInputError
from secondsite.model.item import ItemState, Operation
from secondsite.model.policy import Policy
from secondsite.model.schedule import window_from_text
from secondsite.service.store import commands, items
from secondsite.service.usecases import operations, setup
from secondsite.service.usecases.operations import Options
from support.service_world import ME, World, absent

OFFICE = dict(window_from_text("mon-fri 08:00-18:00 2MiB"))
CHANGES: dict[str, Any] = {
    "copy_frequency_s": 30,
    "retention_hours": 240.0,
    "keep_all_hours": 2.0,
    "keep_hourly_hours": 48.0,
    "compression": False,
    "app_consistent_hours": 4,
    "bandwidth_limit": 1_000_000,
    "bandwidth_schedule": [OFFICE],
    "bandwidth_zone": "Europe/Amsterdam",
    "resync_window": "22:00-05:00",
    "delete_replica_on_disable": True,
}


def pushed(world: World, item: str) -> dict[str, dict[str, Any]]:
    with world.store.reading() as tx:
        return {
            command.kind: command.args["policy"]
            for command in commands.open_of_item(tx, item)  # type: ignore[arg-type]
            if command.kind.endswith(".policy")
        }


def test_every_setting_survives_the_store_and_reaches_both_sides(world: World) -> None:
    item = world.protected()
    for kind in ("source.policy", "target.policy"):
        world.answers[kind] = absent
    record = setup.change_policy(world.ctx, "fast", CHANGES)
    for told in (record.settings, *pushed(world, item.id).values()):
        assert {key: told[key] for key in CHANGES} == CHANGES
        policy = Policy(**told)
        assert policy.bandwidth_schedule == (OFFICE,)
        assert policy.keep_all_hours == 2.0
    assert set(pushed(world, item.id)) == {"source.policy", "target.policy"}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (ItemState.PAUSED, True),
        (ItemState.COMMIT_PENDING, True),  # a cancel lets the source go on, under the policy of now
        (ItemState.UNPLANNED_COMMIT_PENDING, True),
        (ItemState.POINT_CHANGE_FAILED, True),
        (ItemState.COMMITTED, False),  # reverse tells both sides anew
        (ItemState.DISABLE_FAILED, False),
    ],
)
def test_a_change_reaches_every_item_that_will_go_on_under_it(
    world: World, state: ItemState, told: bool
) -> None:
    item = world.protected()
    for kind in ("source.policy", "target.policy"):
        world.answers[kind] = absent
    with world.store.transaction() as tx:
        items.change(tx, item.id, state=state)
    setup.change_policy(world.ctx, "fast", {"copy_frequency_s": 900})
    assert bool(pushed(world, item.id)) is told


def test_a_zone_that_this_machine_does_not_know_is_refused_before_it_reaches_a_node(world: World) -> None:
    with pytest.raises(InvalidInputError) as caught:
        setup.create_policy(world.ctx, "mars", {"bandwidth_zone": "Mars/Base"})
    assert caught.value.attributes == {"field": "bandwidth_zone"}


@pytest.mark.parametrize(
    ("says", "given", "deletes"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
def test_disable_deletes_the_replica_as_the_policy_says_unless_it_is_told(
    world: World, says: bool, given: bool | None, deletes: bool
) -> None:
    item = world.protected()
    setup.change_policy(world.ctx, "fast", {"delete_replica_on_disable": says})
    job = operations.start_operation(
        world.ctx, ME, item.name, Operation.DISABLE, Options(delete_replica=given)
    )
    assert job.parameters["delete_replica"] is deletes
