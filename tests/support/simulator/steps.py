"""The steps of stories: what the world does, and what the product is asked to do. Each returns what came of it, or None."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from secondsite.errors import PinnedError
from secondsite.journal import Journal
from secondsite.node.target.upkeep import Upkeep
from support.simulator.roles import change_roles
from support.simulator.site import ITEM, NAME
from support.simulator.story import Step, Story

KEY: Final = bytes(range(32)).hex()


def protect(story: Story) -> None:
    """Make the item on both sides, as the service's workflow does."""
    world, source, target = story.world, story.source, story.target
    vm = source.add_machine(world.geometry.sizes)
    policy = asdict(world.geometry.policy)
    common = {"name": NAME, "digest_key": KEY, "policy": policy}
    sizes = dict(world.geometry.sizes)
    target.order("target.create", 1, {**common, "disks": sizes, "source_node": source.node})
    there = {"node": target.node, "host": "127.0.0.1", "port": 1}
    source.order("source.start", 1, {**common, "vm": vm, "disks": list(sizes), "target": there})
    for _ in range(story.chance.choice((0, 4, 12))):
        write(story)


# -- the world ---------------------------------------------------------------------------------------------------


def write(story: Story) -> str | None:
    """Guests write, whichever runs."""
    said = [
        f"{site.letter}: {site.machine.write(story.chance)}"
        for site in story.world.sites
        if site.machine is not None and site.machine_runs()
        for _ in range(story.chance.choice((1, 1, 2, 5)))
    ]
    return "; ".join(said) or None


def grow(story: Story) -> str | None:
    """A disk of the running machine grows."""
    source = story.source
    if source.machine is None or not story.is_replicating():
        return None
    if sum(len(data) for data in source.machine.now().values()) > 512 << 10:
        return None
    return source.machine.grow(story.chance)


def lose_tracking(story: Story) -> str | None:
    """The hypervisor forgets what changed."""
    if story.source.machine is None:
        return None
    story.source.machine.capture.lose_tracking()
    return "forgotten"


def crash(story: Story) -> str:
    """A node, or the machine that it is on, ends and begins again."""
    site = story.chance.choice(story.world.sites)
    power = story.chance.random() < 0.5
    story.crash(site, power=power)
    return f"{site.letter}, {'power' if power else 'killed'}"


def jump(story: Story) -> str:
    """A clock jumps."""
    site = story.chance.choice(story.world.sites)
    by_s = story.chance.choice((-7200, -60, -1, 1, 60, 3600, 86400))
    site.skew_s += by_s
    return f"{site.letter} by {by_s} s"


def time_passes(story: Story) -> str:
    """Nothing happens for a while."""
    seconds = story.chance.choice((5, 300, 900, 3600))
    story.world.sleep(seconds)
    return f"{seconds} s"


def arrive_late(story: Story) -> str | None:
    """A request that its client has given up arrives."""
    if not story.world.network.late:
        return None
    return story.act("late", story.world.network.deliver_late, story.target)


def link(story: Story) -> str:
    """The link goes down, or comes back."""
    network = story.world.network
    network.down = not network.down and story.chance.random() < 0.5
    return "down" if network.down else "up"


# -- the product -------------------------------------------------------------------------------------------------


def cycle(story: Story) -> str | None:
    """A replication cycle."""
    if not story.is_replicating():
        return None
    said = story.act("cycle", story.source.cycle, story.source, story.target)
    story.world.sleep(story.world.geometry.policy.copy_frequency_s)
    return said


def maintain(story: Story) -> str | None:
    """Retention at the target: fold, thin, collect, as the upkeep does it."""
    target, judge = story.target, story.world.judge
    if not story.has_journal():
        return None
    record = target.items.get(ITEM)
    now = target.clock()
    upkeep = Upkeep(target.items, target.journals, target.replicas, cast("Any", None), lambda: now)

    def act() -> None:
        with target.running():
            upkeep.maintain(record)

    with target.running():
        offered = target.journals.get(ITEM).points()
    judge.maintaining(offered, record.policy, now)
    return story.act("maintain", act, target)


def thin(story: Story) -> str | None:
    """Some points are merged into their successors."""
    target, judge = story.target, story.world.judge
    if not story.has_journal():
        return None
    offered = [point.sequence for point in target.journals.get(ITEM).points()]
    if len(offered) < 4:
        return None
    gone = sorted(story.chance.sample(offered[1:-2], story.chance.randrange(1, len(offered) - 2)))
    used = {*judge.pinned.values(), *(view.sequence for view in judge.views)}

    def act() -> None:
        with target.running():
            try:
                target.journals.get(ITEM).thin(gone)
            except PinnedError:
                if not used & set(gone):
                    raise

    for sequence in set(gone) - used:
        judge.due.pop(sequence, None)
    return f"{gone} {story.act('thin', act, target)}"


def pin(story: Story) -> str | None:
    """Somebody needs a point for long, or gives one up."""
    judge, target = story.world.judge, story.target
    if not story.has_journal():
        return None
    with target.running():
        journal = target.journals.get(ITEM)
        if judge.pinned and story.chance.random() < 0.5:
            owner = story.chance.choice(sorted(judge.pinned))
            journal.unpin(owner)
            judge.pinned.pop(owner)
            return f"{owner} gives up"
        point = story.chance.choice(journal.points())
        owner = f"owner {point.sequence}"
        journal.pin(point.sequence, owner)
    judge.pinned[owner] = point.sequence
    judge.due[point.sequence] = point.time
    return owner


def view(story: Story) -> str | None:
    """Somebody opens a view and reads it for long, or closes one."""
    judge, target = story.world.judge, story.target
    if not story.has_journal():
        return None
    if len(judge.views) > 1 or (judge.views and story.chance.random() < 0.4):
        gone = judge.views.pop(story.chance.randrange(len(judge.views)))
        judge.check_view(gone)
        gone.close()
        return f"of {gone.sequence} closes"
    # A process of its own: it outlives the node's.
    with Journal.open(target.folders.journal(ITEM), writable=False, open_base=target.open_base) as journal:
        sequence = story.chance.choice([point.sequence for point in journal.points()])
        judge.views.append(journal.view(sequence, purpose="reader"))
        judge.views_of = target
    return f"of {sequence} opens"


def resync(story: Story) -> str | None:
    """An operator has whole disks compared."""
    if not story.is_replicating():
        return None
    epoch = story.source.items.get(ITEM).epoch
    return story.act("resync", lambda: story.source.order("source.resync", epoch, {}), story.source)


def flip(story: Story) -> str | None:
    """A bit of a copy of the journal flips: every point of the copy reads right or is refused, and the scrub finds it."""
    target, chance = story.target, story.chance
    if not story.has_journal():
        return None
    copy = story.world.place / "flipped"
    shutil.copytree(target.folders.journal(ITEM), copy)
    try:
        files = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.stat().st_size]
        covered = [path for path in files if _is_covered(path.relative_to(copy))]
        path = chance.choice(covered)
        data = bytearray(path.read_bytes())
        at, bit = chance.randrange(len(data)), chance.randrange(8)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        said = story.world.judge.check_flipped(copy, target.open_base)
        return f"{path.relative_to(copy)} at {at}: {said}"
    finally:
        shutil.rmtree(copy)


def _is_covered(path: Path) -> bool:
    """Whether the journal promises to notice damage there (docs/design/journal.md, Damage)."""
    return path.parts[0] not in {"pins", "incoming", "lock", "applied"} and ".tmp-" not in path.name


COMMON: Final[tuple[tuple[str, int, Step], ...]] = (
    ("write", 12, write),
    ("cycle", 18, cycle),
    ("maintain", 6, maintain),
    ("thin", 2, thin),
    ("pin", 2, pin),
    ("view", 3, view),
    ("late", 3, arrive_late),
    ("crash", 3, crash),
    ("grow", 4, grow),
    ("tracking", 1, lose_tracking),
    ("clock", 1, jump),
    ("time", 1, time_passes),
    ("link", 1, link),
    ("resync", 1, resync),
    ("flip", 2, flip),
)


ROLES: Final = (
    *(entry for entry in COMMON if entry[0] not in {"grow", "thin"}),
    ("roles", 16, change_roles),
)
"""Stories of failovers. Disks do not grow in them: a side whose disk has grown since its last point cannot be adopted."""
OPENING: Final[tuple[tuple[str, int, Step], ...]] = (
    ("write", 4, write),
    ("cycle", 6, cycle),
    ("late", 3, arrive_late),
    ("crash", 1, crash),
)
"""The first replication on a bad link."""


def open_badly(story: Story, steps: int) -> None:
    """Replicate initially while requests have fates more often than not."""
    choose = choosing(OPENING, story.world.stream("mood"))
    story.bad_link = 0.5
    story.run_steps(steps, choose)
    story.bad_link = 0.0


def choosing(
    entries: tuple[tuple[str, int, Step], ...], chance: Random
) -> Callable[[Story], tuple[str, Step]]:
    """Return what draws a step. Each story has weights of its own, so that some do little but fold, or grow, or crash."""
    names = [(name, step) for name, _, step in entries]
    weights = [weight * chance.choice((0.2, 1, 1, 3)) for _, weight, _ in entries]

    def choose(story: Story) -> tuple[str, Step]:
        return story.chance.choices(names, weights)[0]

    return choose
