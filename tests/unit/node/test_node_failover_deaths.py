"""What a failover starts dies under it, or soon after: that is no reason to give it up, and nobody is locked out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite import durable
from secondsite.errors import TimeoutExceededError, UnavailableError
from secondsite.fabric.port import HypervisorError, PowerState
from support.journals import ITEM
from support.power import unsynced
from support.role_world import WAIT_S, TargetSide


@pytest.fixture
def side(tmp_path: Path) -> Iterator[TargetSide]:
    with unsynced():
        side = TargetSide(tmp_path)
        yield side
        side.close()


def test_a_replica_whose_qemu_dies_while_it_starts_is_started_once_more(side: TargetSide) -> None:
    """The failover was given up and rolled back."""
    side.fabric.fail("start", HypervisorError("qemu unexpectedly closed the monitor"))
    assert "result" in side.submit(side.failover(2))
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]


def test_a_replica_whose_view_dies_while_it_starts_is_started_once_more(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, deaths = side.fabric.start, iter([True])

    def start(vm: str) -> None:
        if next(deaths, False):
            side.views.die(next(iter(side.views.running)))
            raise TimeoutExceededError("it was started but does not run: it is paused")
        real(vm)

    monkeypatch.setattr(side.fabric, "start", start)
    assert "result" in side.submit(side.failover(2))
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]


def test_a_view_that_dies_before_it_answers_is_started_once_more(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, deaths = side.views.ensure, iter([True])

    def ensure(*args: Any) -> Path:
        if next(deaths, False):
            raise UnavailableError("the view of point 3 ended at once: it said nothing")
        return real(*args)

    monkeypatch.setattr(side.views, "ensure", ensure)
    assert "result" in side.submit(side.failover(2))
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]


def test_an_abandon_removes_the_image_that_a_kill_cut(side: TargetSide) -> None:
    side.fail_over(2)
    folder = side.folders.replicas(ITEM)
    (folder / f"replica-e2-vdz.qcow2{durable.TEMPORARY_MARK}0a").write_bytes(b"cut")
    side.done("target.abandon", 2, epoch=2)
    assert not folder.exists()


def test_a_replica_that_does_not_start_twice_fails_its_failover(side: TargetSide) -> None:
    for _ in range(2):
        side.fabric.fail("start", HypervisorError("no such machine type"))
    assert side.submit(side.failover(2))["error"]["code"] == HypervisorError.code


def test_a_replica_that_crashed_can_be_started_again_though_its_disks_were_not_copied_yet(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images were copied into while it was off, and locked: QEMU could not be started for as long as that took."""
    pulling, crashed, pulls = threading.Event(), threading.Event(), []
    real = side.fabric.make_standalone

    def pull(vm: str, *, progress: object, cancelled: Any) -> None:
        pulls.append(side.fabric.power(vm))
        pulling.set()
        crashed.wait(WAIT_S)
        real(vm, cancelled=cancelled)

    monkeypatch.setattr(side.fabric, "make_standalone", pull)
    side.submit(side.failover(2))
    assert pulling.wait(WAIT_S)
    (vm,) = side.machines
    side.fabric.power_off(vm.uuid)
    crashed.set()
    side.settler.join(ITEM)
    side.settler.start(ITEM)  # as upkeep does each second
    side.settler.join(ITEM)
    assert pulls == [PowerState.RUNNING]
    assert not side.fabric.standalone(vm.uuid)

    # Somebody who asks for the commit wants it copied.
    side.done("target.commit", 2)
    assert side.fabric.standalone(vm.uuid)


def test_a_commit_has_a_view_that_died_served_again(side: TargetSide) -> None:
    """It failed: the upkeep that serves dead views again waited for the commit to end."""
    side.fail_over(2)
    side.views.die(next(iter(side.views.running)))
    side.done("target.commit", 2)
    assert side.fabric.standalone(side.machines[0].uuid)


def test_a_commit_outlives_that_each_disk_fails_once_after_its_view_came_back(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit failed, and failed again when it was asked for again: once for each disk."""
    side.fail_over(2)
    real, left = side.fabric.make_standalone, iter(["vda", "vdb", "vdc"])

    def make(vm: str, **options: Any) -> None:
        if (disk := next(left, None)) is not None:
            raise HypervisorError(f"copying into {disk} ended before all was there: Input/output error")
        real(vm, **options)

    monkeypatch.setattr(side.fabric, "make_standalone", make)
    side.done("target.commit", 2)
    assert side.fabric.standalone(side.machines[0].uuid)


def test_a_commit_of_a_disk_that_cannot_be_copied_fails(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.fail_over(2)

    def make(vm: str, **options: Any) -> None:
        raise HypervisorError("copying ended before all was there: Input/output error")

    monkeypatch.setattr(side.fabric, "make_standalone", make)
    assert side.refused("target.commit", 2) == HypervisorError.code
