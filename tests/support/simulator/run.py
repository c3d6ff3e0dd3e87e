"""Runs seeds: each in a folder of its own, in memory if there is a file system there; a failure says how to replay it."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from support.simulator.roles import check_stepped_down
from support.simulator.steps import COMMON, ROLES, choosing, open_badly, protect
from support.simulator.story import Story
from support.simulator.world import World, in_hand

STEPS = 40
Patch = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed. `failure`: empty if all promises were kept. `digest`: of all that happened."""

    seed: int
    steps: int
    geometry: str
    lines: tuple[str, ...]
    failure: str
    points_read: int
    fates: dict[str, int]

    @property
    def reason(self) -> str:
        """What was wrong, in one line."""
        return self.failure.strip().splitlines()[-1].rpartition("simulator.judge.")[2] if self.failure else ""

    @property
    def digest(self) -> str:
        """Two runs of a seed have the same."""
        return blake3("\n".join((self.geometry, *self.lines, self.failure)).encode()).hexdigest()[:16]


def run_seed(seed: int, steps: int = STEPS, patch: Patch = nullcontext) -> Outcome:
    """Run one story. Whatever it raises is a failure: the product may refuse, but not break."""
    shared = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="ss-sim-", dir=shared if shared.is_dir() else None))
    world = World(seed, place)
    lines: list[str] = []
    failure = ""
    try:
        with in_hand(world), patch():
            world.begin()
            story = Story(world)
            story.lines = lines
            try:
                protect(story)
                if world.stream("mood").random() < 0.4:
                    open_badly(story, steps // 3)
                entries = ROLES if world.stream("mood").random() < 0.4 else COMMON
                story.run_steps(steps - story.number, choosing(entries, world.stream("mood")))
                story.settle()
                check_stepped_down(story)
            finally:
                world.close()
    except Exception as error:
        failure = "".join(traceback.format_exception(error)).replace(str(place), "PLACE")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Outcome(
        seed,
        steps,
        world.geometry.describe(),
        tuple(lines),
        failure,
        world.judge.points_read,
        dict(world.network.fates),
    )
