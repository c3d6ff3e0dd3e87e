"""Disks that are made smaller and larger between two cycles: what was lost at their end is noticed, and nothing else is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.model.manifest import PointKind
from secondsite.model.units import BLOCK, KIB
from support.cycle_world import SIZES, VDA, VDB, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Both disks full, and replicated."""
    world = World.create(tmp_path / "w")
    for disk, size in SIZES.items():
        world.machine.capture.write(disk, 0, b"a" * size)
    world.run()
    yield world
    world.close()


def cut(world: World, size: int) -> None:
    disk = world.machine.capture.disks[VDA]
    disk.resize(size)
    disk.resize(SIZES[VDA])


def test_what_a_cut_took_is_zero_in_the_next_point(world: World) -> None:
    cut(world, 200 * KIB)
    outcome = world.run()
    assert outcome.kind is PointKind.RESYNC
    assert outcome.changed == 120 * KIB
    world.check_latest()
    assert world.run().kind is PointKind.DELTA


def test_a_cut_is_noticed_although_the_guest_wrote_to_the_disks_end_since(world: World) -> None:
    """As whoever partitions the disk anew does: the same bytes, at its very end."""
    cut(world, 100 * KIB)
    world.machine.capture.write(VDA, SIZES[VDA] - BLOCK, b"a" * BLOCK)
    assert world.run().changed == 216 * KIB
    world.check_latest()


def test_a_cut_amid_a_block_is_noticed(world: World) -> None:
    cut(world, SIZES[VDA] - 512)
    assert world.run().changed == BLOCK
    world.check_latest()


def test_a_cut_that_takes_nothing_is_none(world: World) -> None:
    world.machine.capture.write(VDA, 200 * KIB, bytes(120 * KIB))
    world.run()
    cut(world, 200 * KIB)
    outcome = world.run()
    assert (outcome.kind, outcome.changed) == (PointKind.DELTA, 0)
    world.check_latest()


def test_a_disk_that_was_all_written_or_is_empty_has_nothing_to_lose(world: World) -> None:
    world.machine.capture.write(VDA, 0, b"b" * SIZES[VDA])
    world.machine.capture.write(VDB, 0, bytes(SIZES[VDB]))
    assert world.run().kind is PointKind.DELTA
    assert world.run().changed == 0
    world.check_latest()
