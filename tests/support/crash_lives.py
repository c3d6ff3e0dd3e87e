"""More workloads of the crash-point sweep: a process that is killed before the power is cut, a cut during the recovery from a
cut, and lives by a seeded dice.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from typing import Final

from secondsite.journal import finish_deletes
from secondsite.model import ids
from support import crash_workloads as lives
from support.crash_disk import Sync
from support.crash_recorder import Recorder
from support.crash_states import Cuts, write_tree
from support.crash_story import Presence, Story
from support.crash_sweep import Workload
from support.journals import VDA, VDB

_Step = Callable[[Story], None]


# -- killed, and taken up by a new process; then the power is cut -----------------------------------------------


def _killed(name: str, prepare: _Step, run: _Step, again: _Step | None = None) -> Workload:
    """`again` begins with the journal open; without it, `run` is done once more."""

    def take_up(story: Story) -> None:
        story.open()
        (again or run)(story)

    return Workload(f"killed: {name}", prepare, run, take_up)


def _pending(story: Story) -> None:
    """Seal what the source has pending, or what it makes now."""
    if story.pending is None or story.pending.sequence <= max(story.promise.points, default=0):
        story.cut_point({VDA: [(0, b"n" * 4096), (4096, 4096)]})
    story.send_and_seal()


def seal_grown(story: Story) -> None:
    if story.model.sizes[VDB] == 9 << 10:
        story.grow(VDB, 13 << 10)
    _pending(story)


def _create(story: Story) -> None:
    """A node makes the journal unless it is there, and replicates."""
    if story.path.exists():
        story.open()
        story.promises_now(presence=Presence.MUST)
    else:
        story.create()
    _replicate(story)


def _replicate(story: Story) -> None:
    parts = lives.parts_of_the_initial(story)
    if story.journal.status().state == "initial":
        story.journal.apply_initial(story.model.epoch, VDA, story.model.send(story.journal, parts))
    if story.pending is None:
        story.cut_point({})
    story.send_and_seal()


def _adopt(story: Story) -> None:
    story.adopt()
    _pending(story)


def _delete(story: Story) -> None:
    if story.path.exists():
        story.open()
        story.delete()
    else:
        finish_deletes(story.path.parent)
        story.promises_now(presence=Presence.GONE, points=frozenset())


def _thin(story: Story) -> None:
    left = [int(point.sequence) for point in story.journal.points()]
    story.thin(*[sequence for sequence in (2, 3) if sequence in left])
    _pending(story)


def _fold(story: Story) -> None:
    offered = sorted(int(point.sequence) for point in story.journal.points())
    story.maintain(2, given_up=offered[:-2])
    _pending(story)


def _pin(story: Story) -> None:
    story.pin(2, "a test failover")
    _pending(story)


def _unpin(story: Story) -> None:
    story.unpin("a test failover")
    _pending(story)


def _raise(story: Story) -> None:
    story.raise_epoch(2)


KILLED: Final = [
    Workload("killed: create", lives.nothing, _create, _create),
    _killed("replicate", lives.empty, _replicate),
    _killed("first seal with files", lives.empty, _pending),
    _killed("seal", lives.some, _pending),
    _killed("resend a damaged log", lives.damaged, lives.repair),
    _killed("grow", lives.some, seal_grown),
    _killed("fold", lives.small, _fold),
    _killed("thin", lives.small, _thin),
    _killed("pin", lives.some, _pin),
    _killed("unpin", lives.pinned, _unpin),
    _killed("raise the epoch", lives.some, _raise),
    Workload("killed: adopt", lives.turned, _adopt, _adopt),
    Workload("killed: delete", lives.some, Story.delete, _delete),
]


# -- cut, and cut again while a writer recovers --------------------------------------------------------------


def after_a_cut(prepare: _Step, run: _Step, moment: float, *, synced_only: bool) -> _Step:
    """What a cut of `run` left, at that part (0 to 1) of its syncs: all that was done, or only what was synced."""

    def prepared(story: Story) -> None:
        prepare(story)
        recorder = Recorder(story.place)
        story.recorder = recorder
        story.promises_now()
        with recorder.recording():
            run(story)
        story.close()
        syncs = [at for at, entry in enumerate(recorder.log) if isinstance(entry, Sync)]
        at = syncs[int(moment * (len(syncs) - 1))]
        cuts = Cuts(recorder.start, recorder.log, list(recorder.live.folders))
        cuts.forward(at)
        shutil.rmtree(story.place)
        story.place.mkdir()
        write_tree(cuts.nothing() if synced_only else cuts.everything(), story.place)
        story.promise = [promise for when, promise in story.promises if when <= at][-1]
        story.recorder = None

    return prepared


def _recover(story: Story) -> None:
    story.open()
    story.close()


def _recovering(name: str, prepare: _Step, run: _Step) -> list[Workload]:
    return [
        Workload(
            f"recover: {name}, cut at {moment:.0%} ({'synced' if synced_only else 'all'})",
            after_a_cut(prepare, run, moment, synced_only=synced_only),
            _recover,
            closed=True,
        )
        for moment in (0.3, 0.6, 0.9)
        for synced_only in (False, True)
    ]


RECOVERING: Final = [
    *_recovering("replicate", lives.empty, _replicate),
    *_recovering("grow", lives.some, lives.grow_within_a_block),
    *_recovering("fold", lives.small, lives.fold),
    *_recovering("thin", lives.small, lambda story: story.thin(2, 3)),
]


# -- by a dice ---------------------------------------------------------------------------------------------


def _by_dice(seed: int) -> Workload:
    def run(story: Story) -> None:
        dice = random.Random(seed)
        for _ in range(4):
            dice.choice((_dice_seal, _dice_seal, _dice_fold, _dice_thin, _dice_pins, _dice_grow))(story, dice)
        _dice_seal(story, dice)

    return Workload(f"dice {seed}", lives.some, run)


def _dice_seal(story: Story, dice: random.Random) -> None:
    changes = {}
    for disk, size in story.model.sizes.items():
        sectors = sorted(dice.sample(range(size // 512), 4))
        kept = [at for at, after in zip(sectors, [*sectors[1:], size // 512], strict=True) if after - at > 1]
        changes[disk] = [
            (at * 512, 512 if dice.random() < 0.3 else bytes([dice.randrange(1, 255)]) * 512) for at in kept
        ]
    story.seal(changes)


def _dice_fold(story: Story, dice: random.Random) -> None:
    offered = sorted(story.promise.points)
    pinned = [sequence for _, sequence in story.promise.pins]
    keep = dice.randint(2, max(2, len(offered) - 1))
    goal = min([offered[-keep:][0], *pinned])
    story.maintain(keep, given_up=[sequence for sequence in offered if sequence < goal])


def _dice_thin(story: Story, dice: random.Random) -> None:
    pinned = {sequence for _, sequence in story.promise.pins}
    may = [sequence for sequence in sorted(story.promise.points)[1:-2] if sequence not in pinned]
    if may:
        story.thin(*dice.sample(may, dice.randint(1, min(2, len(may)))))


def _dice_pins(story: Story, dice: random.Random) -> None:
    if story.promise.pins and dice.random() < 0.5:
        story.unpin(min(story.promise.pins)[0])
        return
    chosen = dice.choice(sorted(story.promise.points))
    with story.journal.view(ids.Sequence(chosen), purpose="view"):
        story.pin(chosen, f"owner {chosen}")


def _dice_grow(story: Story, dice: random.Random) -> None:
    disk = dice.choice([VDA, VDB])
    story.grow(disk, story.model.sizes[disk] + dice.randrange(1, 12) * 512)
    _dice_seal(story, dice)


DICE: Final = [_by_dice(seed) for seed in range(12)]
WORKLOADS: Final = [*lives.PLAIN, *KILLED, *RECOVERING, *DICE]
