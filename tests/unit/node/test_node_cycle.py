"""A cycle: what it ships, what it believes, and what it does about each way in which the last one may have ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import SecondSiteError, UnavailableError
from secondsite.journal import Journal
from secondsite.model.ids import Epoch
from secondsite.model.manifest import PointKind, parse_time
from secondsite.node.source import cycle as cycles
from support.cycle_world import ITEM, KEY, SIZES, VDA, VDB, World
from support.foreign_points import diverge
from support.power import unsynced


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World.create(tmp_path / "w")
    world.machine.capture.write(VDA, 0, b"a" * 200_000)
    world.machine.capture.write(VDB, 68 << 10, b"the short last block".ljust(2048, b"."))
    yield world
    world.close()


def change(world: World, fill: bytes) -> None:
    """Write data, overwrite with zeros, and touch both disks."""
    world.machine.capture.write(VDA, 8192, fill * 8192)
    world.machine.capture.write(VDA, 100_000, fill * 50)
    world.machine.capture.write(VDA, 160_000, bytes(30_000))
    world.machine.capture.write(VDB, 68 << 10, fill * 2048)


def test_the_first_cycle_replicates_everything_and_the_next_only_what_changed(world: World) -> None:
    first = world.run()
    assert (first.kind, first.sequence) == (PointKind.INITIAL, 1)
    assert first.changed == 49 * 4096 + 2048
    world.check_latest()
    world.machine.capture.write(VDA, 5000, b"x")
    second = world.run()
    assert (second.kind, second.sequence, second.changed) == (PointKind.DELTA, 2, 4096)
    world.check_latest()


def test_a_cycle_without_changes_makes_a_point_that_costs_nothing(world: World) -> None:
    world.run()
    sent = world.sent
    assert world.run().changed == 0
    assert world.sent == sent
    world.check_latest()


def test_blocks_that_became_zeros_are_not_sent_as_data(world: World) -> None:
    world.run()
    world.machine.capture.write(VDA, 0, bytes(65536))
    sent = world.sent
    assert world.run().changed == 65536
    assert world.sent - sent < 100
    world.check_latest()


def test_lost_tracking_is_repaired_by_compare_and_ships_only_what_differs(world: World) -> None:
    world.run()
    world.machine.capture.lose_tracking()
    world.machine.capture.write(VDA, 65536, b"z" * 4096)
    outcome = world.run()
    assert (outcome.kind, outcome.changed) == (PointKind.RESYNC, 4096)
    assert world.items.get(ITEM).counters["tracking_lost"] == 1
    world.check_latest()
    assert world.run().kind is PointKind.DELTA


def test_what_a_failed_cycle_shipped_is_counted_too(world: World) -> None:
    world.run()
    change(world, b"u")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.link, "seal", world.link.seal)
        _fail_after(world, world.link, "seal", restart=False)
    world.run()
    assert world.items.get(ITEM).counters["bytes_shipped"] == world.sent


def test_an_epoch_that_moved_on_ends_replication(world: World) -> None:
    world.run()
    world.journal.raise_epoch(Epoch(2))
    world.restart()
    with pytest.raises(SecondSiteError) as caught:
        world.run()
    assert caught.value.code == "stale_epoch"


def initial(world: World) -> None:
    pass


def delta(world: World) -> None:
    world.run()
    change(world, b"d")


def resync(world: World) -> None:
    world.run()
    world.machine.capture.lose_tracking()
    change(world, b"r")


def relearn(world: World) -> None:
    """The target seals a point whose acknowledgement and pending record are both lost."""
    world.run()
    _seal_unseen(world, b"u")
    (world.folder / "pending").unlink()
    change(world, b"v")


def reverted(world: World) -> None:
    """As before, and meanwhile the source went back to what its own table says the target holds."""
    world.run()
    before = world.machine.now()
    _seal_unseen(world, b"u")
    (world.folder / "pending").unlink()
    for disk, content in before.items():
        world.machine.capture.write(disk, 0, content)


def diverged(world: World) -> None:
    """The target's last point is the other side's own, and differs where the machine wrote nothing; it writes elsewhere."""
    world.run()
    diverge(world)
    change(world, b"v")


def diverged_and_lost(world: World) -> None:
    """The same, and our bitmap is gone as well."""
    diverged(world)
    world.machine.capture.lose_tracking()


def damaged(world: World) -> None:
    world.run()
    _seal_unseen(world, b"u")
    (world.folder / "pending").write_bytes(b"torn")
    change(world, b"v")


def damaged_initial(world: World) -> None:
    """The initial replication was cut after a part was applied, and its record is torn."""
    _fail_after(world, world.link, "apply_initial")
    (world.folder / "pending").write_bytes(b"torn")
    world.machine.capture.write(VDA, 0, bytes(70_000))


def cut_initial(world: World) -> None:
    _fail_after(world, world.link, "apply_initial")
    # What was data is zeros now: the target holds data where the source has a hole.
    world.machine.capture.write(VDA, 0, bytes(70_000))


def _seal_unseen(world: World, fill: bytes) -> None:
    change(world, fill)
    _fail_after(world, world.link, "seal")


def _fail_after(world: World, link: object, name: str, *, restart: bool = True) -> None:
    """Run a cycle in which the answer of the call is lost; then both nodes restart."""
    real = getattr(link, name)

    def lost(*args: object) -> object:
        real(*args)
        raise UnavailableError("the answer was lost")

    setattr(link, name, lost)
    with pytest.raises(UnavailableError):
        world.run()
    if restart:
        world.restart()


CASES: dict[str, Callable[[World], None]] = {
    case.__name__: case
    for case in (
        initial,
        cut_initial,
        damaged_initial,
        delta,
        resync,
        relearn,
        reverted,
        diverged,
        diverged_and_lost,
        damaged,
    )
}


@pytest.mark.every_step
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("restart", [False, True], ids=["goes on", "restarts and is written to"])
def test_a_failure_at_any_call_harms_nothing(tmp_path: Path, name: str, restart: bool) -> None:
    calls = 0
    at = -1
    while at < calls:  # -1: without a failure, to learn how many calls there are
        world = World.create(tmp_path / "w")
        world.machine.capture.write(VDA, 0, b"a" * 200_000)
        world.machine.capture.write(VDB, 68 << 10, b"b" * 2048)
        CASES[name](world)
        world.calls, world.fail_at = 0, at
        try:
            try:
                world.run()
                assert at == -1
            except UnavailableError:
                pass
            if at == -1:
                calls = world.calls
                world.check_latest()
            world.check_points()
            if restart:
                world.restart()
                change(world, b"w")
            world.run()
            world.check_latest()
            change(world, b"x")
            assert world.run().kind is PointKind.DELTA
            world.check_latest()
        except BaseException as error:
            error.add_note(f"call {at} of {calls} failed")
            raise
        world.close()
        shutil.rmtree(tmp_path / "w")
        at += 1
    assert calls > 6


@pytest.mark.parametrize("name", ["relearn", "damaged"])
def test_an_unknown_last_point_costs_only_what_differs(world: World, name: str) -> None:
    """The target's digests are fetched; the source ships the difference, not the disk."""
    CASES[name](world)
    sent = world.sent
    outcome = world.run()
    assert outcome.kind is PointKind.RESYNC
    # `v` over `u`: 8 KiB in three blocks, 50 bytes in one, and the short block; the zeros are there already.
    assert outcome.changed == 3 * 4096 - 4096 + 4096 + 2048
    assert world.sent - sent < outcome.changed + 2 * (16 << 10), (
        "beside the blocks only two logs' own metadata"
    )
    world.check_latest()


def test_a_point_of_the_other_sides_own_costs_reading_only_where_the_two_may_differ(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole disks were read to find some blocks."""
    diverged(world)
    theirs = world.machine.contents[world.journal.manifest().time]
    read: list[int] = []
    real = cycles.produce

    def counted(*args: Any, **fields: Any) -> Iterator[Any]:
        fields["progress"] = lambda done, total: read.append(total) if done == total else None
        return real(*args, **fields)

    monkeypatch.setattr(cycles, "produce", counted)
    outcome = world.run()
    assert outcome.kind is PointKind.RESYNC
    assert outcome.changed == sum(
        len(ours[at : at + 4096])
        for disk, ours in world.machine.now().items()
        for at in range(0, len(ours), 4096)
        if ours[at : at + 4096] != theirs[disk][at : at + 4096]
    )
    assert sum(read) < 0.75 * sum(SIZES.values()), (
        "the fake tracks granules of 64 KiB, most of which were written to"
    )
    assert not (world.folder / "suspects").exists()
    world.check_latest()
    assert world.run().kind is PointKind.DELTA


@pytest.mark.parametrize("text", ["torn", '{"disks": {"vda": [[0, 1]]}, "checksum": "0"}'])
def test_suspects_that_are_damaged_mean_a_comparison_of_everything(world: World, text: str) -> None:
    diverged(world)
    world.machine.capture.fail_next = UnavailableError("the hypervisor is away")
    with pytest.raises(UnavailableError):
        world.run()
    (world.folder / "suspects").write_text(text)
    world.restart()
    assert world.run().kind is PointKind.RESYNC
    world.check_latest()


def test_an_unknown_last_point_is_as_old_as_the_target_says(world: World) -> None:
    relearn(world)
    last = world.journal.status().last
    assert last is not None
    world.machine.capture.fail_next = UnavailableError("the hypervisor is away")
    with pytest.raises(UnavailableError):
        world.run()
    acked = world.items.get(ITEM).acked
    assert acked is not None
    assert parse_time(acked.time) == last.time


def test_a_target_that_lost_its_points_is_refused(world: World) -> None:
    world.run()
    journal = world.root / "t" / "journals" / ITEM
    world.close()
    shutil.rmtree(journal)
    Journal.create(journal, item=ITEM, name="web", epoch=Epoch(1), key=KEY, disks=SIZES).close()
    world.restart()
    with pytest.raises(SecondSiteError) as caught:
        world.run()
    assert caught.value.code == "out_of_sequence"
