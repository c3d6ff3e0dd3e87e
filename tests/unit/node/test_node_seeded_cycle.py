"""A source whose target was filled from images: the first point is right whatever they held, and only what differs is shipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secondsite.blocks import DigestTable
from secondsite.errors import SecondSiteError
from secondsite.fabric.fake import FakeFabric
from secondsite.model.units import KIB
from secondsite.node.config import Folders
from secondsite.node.records import ItemStore
from secondsite.node.target.seeding import Seeding
from support.cycle_world import ITEM, KEY, VDA, VDB, Contents, Machine, World
from support.power import unsynced
from support.seeds import CONTENT, pattern, write_seed

BLOCK = 4 * KIB


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


def machine() -> Machine:
    """A machine whose disks hold CONTENT."""
    made = Machine()
    for disk, content in CONTENT.items():
        made.capture.write(disk, 0, content)
    return made


def fill(world: World, seed: Path) -> None:
    """Fill the journal from the seed, as the target does."""
    items = ItemStore(world.root / "t" / "items")
    folders = Folders(world.root / "t", world.root / "t")
    seeding = Seeding(items, FakeFabric(), folders, lambda: datetime.now(UTC), lambda: False)
    folders.run.mkdir(exist_ok=True)
    seeding.seed(items.get(ITEM), world.journal, seed, lambda *_args, **_fields: None)


def seeded(root: Path, content: Contents, *, told: bool = True) -> World:
    """A world whose base was filled with this; `told`: the source knows."""
    World.create(root).close()
    world = World(root, machine())
    fill(world, write_seed(root / "seed", content))
    world.items.change(ITEM, seeded=told)
    return world


def changed(content: bytes, *blocks: int, value: int = 77) -> bytes:
    """Return the contents with other data in these blocks."""
    data = bytearray(content)
    for block in blocks:
        data[block * BLOCK : (block + 1) * BLOCK] = bytes([value]) * BLOCK
    return bytes(data)


def test_of_an_exact_copy_nothing_is_shipped(short_path: Path) -> None:
    world = seeded(short_path / "w", CONTENT)
    outcome = world.run()
    assert (world.sent, outcome.changed) == (0, 0)
    world.check_latest()
    assert not world.items.get(ITEM).seeded
    world.close()


def test_of_an_older_copy_only_what_differs_is_shipped(short_path: Path) -> None:
    """Other data, data where zeros are now, and zeros where data is now."""
    old = {VDA: changed(CONTENT[VDA], 1, 3), VDB: changed(CONTENT[VDB], 6)[: 40 * KIB]}
    world = seeded(short_path / "w", old)
    outcome = world.run()
    behind = [at for at in range(40 * KIB, len(CONTENT[VDB]), BLOCK) if any(CONTENT[VDB][at : at + BLOCK])]
    lost = sum(min(BLOCK, len(CONTENT[VDB]) - at) for at in behind)
    assert outcome.changed == 3 * BLOCK + lost
    assert world.sent < outcome.changed + 8 * 4096 * 2
    world.check_latest()
    world.close()


def test_a_copy_of_another_machine_costs_bytes_and_nothing_else(short_path: Path) -> None:
    other = {VDA: pattern(320 * KIB, 200), VDB: b"\xff" * (70 * KIB)}
    world = seeded(short_path / "w", other)
    world.run()
    world.check_latest()
    world.close()


def test_what_is_written_after_the_first_point_is_a_delta(short_path: Path) -> None:
    world = seeded(short_path / "w", CONTENT)
    world.run()
    world.machine.capture.write(VDA, 5 * BLOCK, b"new")
    outcome = world.run()
    assert outcome.changed == BLOCK
    world.check_latest()
    world.close()


@pytest.mark.parametrize("before_the_start", [True, False])
def test_a_disk_that_grew_while_the_target_was_filled_is_followed(
    short_path: Path, before_the_start: bool
) -> None:
    world = seeded(short_path / "w", CONTENT)
    size = 401 * KIB
    world.machine.capture.disks[VDA].resize(size)
    if before_the_start:  # which makes its table by the disk as it is then
        path = world.folder / "digests" / f"{VDA}.tbl"
        path.unlink()
        DigestTable.create(path, size, KEY).close()
    world.machine.capture.write(VDA, 400 * KIB, b"new")
    assert world.run().changed == KIB
    world.check_latest()
    world.close()


def test_a_source_that_was_not_told_learns_it_and_no_wrong_point_is_sealed(short_path: Path) -> None:
    """Where the machine has zeros the base has data: the source sends nothing there, since it believes in an empty base."""
    world = seeded(short_path / "w", {VDA: changed(CONTENT[VDA], 3), VDB: CONTENT[VDB]}, told=False)
    with pytest.raises(SecondSiteError, match="not what the source believes"):
        world.run()
    assert world.journal.points() == []
    world.run()
    world.check_latest()
    world.close()


def test_a_base_that_is_filled_anew_behind_the_sources_back_makes_no_wrong_point(short_path: Path) -> None:
    world = seeded(short_path / "w", CONTENT)
    world.fail_at = (
        8  # the snapshot: before come tidy, status and the digests of two disks, with two chances each
    )
    with pytest.raises(SecondSiteError, match="connection broke"):
        world.run()
    assert not world.items.get(ITEM).seeded, "it has learned what the base holds"
    fill(world, write_seed(short_path / "other", {VDA: changed(CONTENT[VDA], 0, 1, 2)}))
    world.fail_at = None
    with pytest.raises(SecondSiteError, match="not what the source believes"):
        world.run()
    world.run()
    world.check_latest()
    world.close()


@pytest.mark.every_step
@pytest.mark.parametrize("restarted", [True, False])
def test_a_cut_at_any_call_ships_little_again_and_makes_no_wrong_point(
    short_path: Path, restarted: bool
) -> None:
    differ = (1, 2, 3, 40, 41)
    template = seeded(short_path / "w", {VDA: changed(CONTENT[VDA], *differ), VDB: CONTENT[VDB]})
    template.close()
    for at in range(200):
        shutil.copytree(short_path / "w", short_path / f"{at}")
        world = World(short_path / f"{at}", machine())
        world.fail_at = at
        try:
            world.run()
        except SecondSiteError:
            world.check_points()
            if restarted:
                world.restart()
            world.fail_at = None
            world.run()
        world.check_latest()
        assert world.sent <= 2 * (len(differ) * BLOCK + 4 * 4096), at
        cut = world.calls > at
        world.close()
        if not cut:
            break
    assert 15 < at < 199
