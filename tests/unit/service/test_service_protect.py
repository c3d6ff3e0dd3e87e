"""What can be protected, what stands in the way, and how the target is chosen."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OperationRefusedError,
    SecondSiteError,
)
from secondsite.model.item import Operation
from secondsite.service.store import items, jobs
from secondsite.service.usecases import operations, protect, setup
from support.service_node import machine
from support.service_world import ME, World

PROBLEM = {"code": "locked", "message": "it is locked", "hint": "unlock it", "forbids": True}


def problems(world: World, name: str = "web-1") -> dict[str, bool]:
    found = next(entry for entry in protect.protectable(world.ctx) if entry.name == name)
    return {problem.code: problem.forbids for problem in found.problems}


def refusal(world: World, **more: Any) -> SecondSiteError:
    with pytest.raises(SecondSiteError) as refused:
        protect.protect(world.ctx, ME, "web-1", **more)
    with world.store.reading() as tx:
        assert jobs.listed(tx) == []
        assert items.listed(tx) == []
    return refused.value


def test_a_machine_with_a_problem_is_listed_and_refused_with_its_hint(world: World) -> None:
    world.inventory("host-ams", {**world.vm, "problems": [PROBLEM]})
    assert problems(world) == {"locked": True}
    error = refusal(world)
    assert isinstance(error, OperationRefusedError)
    assert (error.hint, error.attributes["problems"]) == ("unlock it", ["locked"])


def test_a_remark_does_not_forbid(world: World) -> None:
    world.inventory("host-ams", {**world.vm, "problems": [{**PROBLEM, "forbids": False}]})
    assert problems(world) == {"locked": False}
    world.protected()


def test_a_machine_whose_disk_has_no_known_size_yet_is_refused_for_now(world: World) -> None:
    disks = [{**disk, "size": 0} for disk in world.vm["disks"]]
    world.inventory("host-ams", {**world.vm, "disks": disks})
    error = refusal(world)
    assert (error.code, error.retry) == ("unavailable", "later")
    assert "try again" in error.hint


def test_a_machine_without_a_replicable_disk_is_refused(world: World) -> None:
    disks = [{**disk, "replicable": False} for disk in world.vm["disks"]]
    world.inventory("host-ams", {**world.vm, "disks": disks})
    assert problems(world) == {"no-disk": True}


def test_a_cloud_that_is_not_mapped_offers_nothing_ready(world: World) -> None:
    world.inventory("host-rtm", machine("far"))
    assert problems(world, "far") == {"not-mapped": True}


def test_a_target_cloud_without_a_usable_node_is_a_problem(world: World) -> None:
    setup.change_members(world.ctx, "cloud-rtm", [], ["host-rtm"])
    assert problems(world) == {"no-target": True}


def test_the_target_with_the_fewest_items_is_chosen(world: World) -> None:
    world.protected()
    world.enrol("host-rtm2", "rtm")
    setup.change_members(world.ctx, "cloud-rtm", ["host-rtm2"], [])
    world.inventory("host-ams", world.vm, machine("web-2"))
    world.run(protect.protect(world.ctx, ME, "web-2").id)
    assert world.item("web-2").recovery_node_id == world.node("host-rtm2")


def test_machines_with_one_name_must_be_named_by_uuid(world: World) -> None:
    twin = machine("web-1")
    world.inventory("host-ams", world.vm, twin)
    error = refusal(world)
    assert isinstance(error, ConflictError)
    assert error.hint == "name it by its UUID"
    world.run(protect.protect(world.ctx, ME, twin["uuid"]).id)
    assert world.item().vm_uuid == twin["uuid"]


def test_names_of_items_are_unique_and_checked(world: World) -> None:
    world.protected()
    world.inventory("host-ams", world.vm, machine("web-2"))
    with pytest.raises(ConflictError, match="already"):
        protect.protect(world.ctx, ME, "web-2", name="web-1")
    with pytest.raises(InvalidInputError):
        protect.protect(world.ctx, ME, "web-2", name="../x")
    with pytest.raises(NotFoundError, match="protected already"):
        protect.protect(world.ctx, ME, "web-1")


def test_excluded_disks_must_exist_and_leave_one(world: World) -> None:
    assert isinstance(refusal(world, exclude_disks=["vdz"]), InvalidInputError)
    assert isinstance(refusal(world, exclude_disks=["vda", "vdb"]), InvalidInputError)


def test_our_own_test_machine_is_not_offered(world: World) -> None:
    item = world.protected()
    replica = machine("web-1-test", labels={"item": item.id, "epoch": 1, "role": "test"})
    world.inventory("host-rtm", replica)
    assert protect.protectable(world.ctx) == []


def test_an_operation_waits_for_the_job_before_it(world: World) -> None:
    world.protected()
    job = operations.start_operation(world.ctx, ME, "web-1", Operation.PLANNED_FAILOVER)
    for operation in (Operation.DISABLE, Operation.TEST_FAILOVER, Operation.PLANNED_FAILOVER):
        with pytest.raises(OperationRefusedError):
            operations.start_operation(world.ctx, ME, "web-1", operation)
    # the item has moved on, but its job still tells the old side to step down
    with world.store.transaction() as tx:
        items.change(tx, world.item().id, state="commit-pending")
    with pytest.raises(OperationRefusedError) as refused:
        operations.start_operation(world.ctx, ME, "web-1", Operation.COMMIT)
    assert job.id in refused.value.hint


def test_a_test_of_a_point_that_is_gone_is_refused(world: World) -> None:
    world.protected()
    with pytest.raises(NotFoundError, match="recovery point 7"):
        operations.start_operation(
            world.ctx, ME, "web-1", Operation.TEST_FAILOVER, operations.Options(sequence=7)
        )
    assert world.item().test_state == "none"


def test_a_node_is_in_one_cloud_of_its_own_site(world: World) -> None:
    with pytest.raises(ConflictError, match="cloud-ams"):
        setup.create_cloud(world.ctx, "second", "ams", ["host-ams"])
    with pytest.raises(InvalidInputError, match="not at site"):
        setup.create_cloud(world.ctx, "second", "ams", ["host-rtm"])
    with pytest.raises(ConflictError, match="mapped already"):
        setup.map_cloud(world.ctx, "cloud-ams", "cloud-rtm", "fast")
    with pytest.raises(InvalidInputError):
        setup.map_cloud(world.ctx, "cloud-ams", "cloud-ams", "fast")
    with pytest.raises(InvalidInputError):
        setup.map_network(world.ctx, "ams", "x", "ams", "y")
    with pytest.raises(ConflictError, match="lan-rtm"):
        setup.map_network(world.ctx, "ams", "lan", "rtm", "other")


def test_a_policy_keeps_what_a_change_leaves_out(world: World) -> None:
    changed = setup.change_policy(world.ctx, "fast", {"retention_hours": 1.0})
    assert (changed.revision, changed.policy.copy_frequency_s, changed.policy.retention_hours) == (2, 5, 1.0)
    with pytest.raises(InvalidInputError):
        setup.change_policy(world.ctx, "fast", {"copy_frequency_s": 6})
    with pytest.raises(InvalidInputError):
        setup.change_policy(world.ctx, "fast", {"colour": "red"})
