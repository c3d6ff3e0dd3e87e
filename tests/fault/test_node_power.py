"""The power of both nodes is cut at every step of a cycle; the machine goes on, and the next cycle makes it good."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from secondsite.errors import UnavailableError
from secondsite.node.records import ItemStore, Role
from support.cycle_world import ITEM, VDA, VDB, Machine, World
from support.foreign_points import diverge
from support.journals import ITEM as ITEM_OF_ROLES
from support.power import AFTERMATHS, PowerCutError, power, unsynced
from support.role_world import SourceSide

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]


def change(world: World, fill: bytes) -> None:
    world.machine.capture.write(VDA, 8192, fill * 8192)
    world.machine.capture.write(VDA, 160_000, bytes(20_000))
    world.machine.capture.write(VDB, 68 << 10, fill * 2048)


def initial(world: World) -> None:
    change(world, b"i")


def delta(world: World) -> None:
    world.run()
    change(world, b"d")


def resolving(world: World) -> None:
    """The last cycle's answer was lost, so the cut one begins with finding out."""
    delta(world)
    seal = world.link.seal

    def unheard(manifest: bytes) -> None:
        seal(manifest)
        raise UnavailableError("the answer was lost")

    world.link.seal = unheard  # type: ignore[assignment, method-assign]
    with suppress(UnavailableError):
        world.run()
    world.restart()
    assert (world.folder / "pending").exists()
    change(world, b"f")


def growing(world: World) -> None:
    """A disk was made smaller, then larger than ever, and written to behind its old end, which cut through a block."""
    delta(world)
    world.machine.capture.write(VDB, 60_000, b"e" * 9_000)
    world.run()
    world.machine.capture.disks[VDB].resize(64 << 10)
    world.machine.capture.disks[VDB].resize(90 << 10)
    world.machine.capture.write(VDB, 80 << 10, b"g" * 512)


def relearning(world: World) -> None:
    """The target's last point is the other side's own: its tables are fetched."""
    world.run()
    diverge(world)
    change(world, b"r")


@pytest.mark.parametrize("prepare", [initial, delta, resolving, growing, relearning])
def test_a_cut_at_any_step_of_a_cycle_harms_nothing(tmp_path: Path, prepare: Callable[[World], None]) -> None:
    with unsynced():
        world = World.create(tmp_path / "prepared" / "w")
        world.machine.capture.write(VDA, 0, b"a" * 30_000)
        prepare(world)
        world.close()
        steps, step = 1, 0
        while step < steps:
            steps = max(steps, cut(tmp_path, copy.deepcopy(world.machine), step))
            # The property test cuts at the others, by chance.
            step += 3
        assert steps > 30


def cut(place: Path, machine: Machine, step: int) -> int:
    """Cut one cycle at the step; return how many steps there were at least."""
    shutil.copytree(place / "prepared", place / "cut")
    world = World(place / "cut" / "w", machine)
    before = world.items.get(ITEM).acked
    ended = False
    with power(world.root, step) as supply, suppress(PowerCutError):
        world.run()
        ended = True
    acked = world.items.get(ITEM).acked
    for kind in AFTERMATHS:
        # What the source's disks tracked is in the machine, and the machine did not lose its power.
        after = World(supply.aftermath(kind, place / "after"), copy.deepcopy(machine))
        try:
            after.check_points()
            last = after.journal.status().last
            for known in (before, acked):
                assert known is None or (last is not None and last.sequence >= known.sequence)
            after.run()
            after.check_latest()
            change(after, b"z")
            after.run()
            after.check_latest()
        except BaseException as error:
            error.add_note(f"cut at step {step}, aftermath: {kind}")
            raise
        after.close()
        shutil.rmtree(place / "after")
    supply.close()
    world.close()
    shutil.rmtree(place / "cut")
    return supply.steps if ended else step + 4


def test_an_item_that_was_taken_for_a_source_is_known_after_a_power_cut(tmp_path: Path) -> None:
    """Its folder had been made for the digest tables, and nobody synced its name: the order was answered, the item gone."""
    side = SourceSide(tmp_path / "w")
    side.items.remove(ITEM_OF_ROLES)
    with power(tmp_path / "w", None) as supply:
        side.act(
            "source.start",
            vm=side.vm,
            name="web",
            digest_key=bytes(32).hex(),
            disks=[VDA],
            policy={},
            target={"node": "other", "host": "127.0.0.1", "port": 1},
        )
    found = ItemStore(supply.aftermath("cut", tmp_path / "after") / "state" / "items")
    supply.close()
    assert found.get(ITEM_OF_ROLES).role is Role.SOURCE
    assert (found.folder(ITEM_OF_ROLES) / "digests" / f"{VDA}.tbl").exists()
    side.close()
