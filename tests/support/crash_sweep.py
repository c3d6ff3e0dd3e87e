"""Runs a workload under the recorder, then checks every state that a power cut at any moment may leave.

Between two calls that make something durable, or that change what was promised, the states of a later moment contain those of
every earlier one (what came since is absent). So states are built just before each sync and on both sides of each change of
the promise, and each different one is checked once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blake3 import blake3

from secondsite import durable
from support.crash_check import tree_below, wrong
from support.crash_disk import Sync, Tree
from support.crash_recorder import Recorder
from support.crash_states import Cuts, write_tree
from support.crash_story import Promise, Story
from support.power import PowerCutError, unsynced

LIMIT: Final = 256
"""States built for one cut, where there are more."""
_KILLED_LIMIT: Final = 32
"""The same for each of the many runs of a workload whose process is killed."""


@dataclass(frozen=True, slots=True)
class Workload:
    """prepare: what was durable long ago. run: what is recorded; the journal is open, if there is one, unless `closed`.

    again: the process also dies at every call of `run`, and this takes it up in a new one; the power is cut only then.
    """

    name: str
    prepare: Callable[[Story], None]
    run: Callable[[Story], None]
    again: Callable[[Story], None] | None = None
    closed: bool = False


@dataclass(slots=True)
class Outcome:
    """states: different ones that were checked. bounded: cuts that had more than the limit, of `cuts`."""

    name: str
    calls: int = 0
    cuts: int = 0
    bounded: int = 0
    states: int = 0
    wrong: list[str] = field(default_factory=list)
    complete: bool = True

    def add(self, other: Outcome) -> None:
        self.calls += other.calls
        self.cuts += other.cuts
        self.bounded += other.bounded
        self.states += other.states
        self.wrong += other.wrong
        self.complete &= other.complete


class Sweep:
    """Sweeps workloads below `place`. `deadline`: in time.monotonic(); what is not looked at by then is said to be so.

    `stop_at`: so many wrong states of a workload are enough.
    """

    def __init__(
        self, place: Path, *, limit: int = LIMIT, deadline: float | None = None, stop_at: int = 5
    ) -> None:
        self._place = place
        self._limit = limit
        self._deadline = deadline
        self._stop_at = stop_at

    def workload(self, workload: Workload) -> Outcome:
        """Run and check one workload; with `again`, once for each call that its process may die at."""
        outcome = Outcome(workload.name)
        seen: set[bytes] = set()
        with unsynced():
            story = Story(self._empty("world"))
            workload.prepare(story)
            story.close()
            shutil.rmtree(self._place / "prepared", ignore_errors=True)
            shutil.copytree(story.place, self._place / "prepared")
            if workload.again is None:
                outcome.add(self._once(workload, story, None, seen))
                return outcome
            calls = self._once(workload, story, None, seen, check=False).calls
            for kill_at in range(calls):
                outcome.add(self._once(workload, story, kill_at, seen))
                if not outcome.complete or len(outcome.wrong) >= self._stop_at:
                    break
        return outcome

    def _once(
        self,
        workload: Workload,
        prepared: Story,
        kill_at: int | None,
        seen: set[bytes],
        *,
        check: bool = True,
    ) -> Outcome:
        # One place for all, since a journal knows its images by their paths.
        place = self._empty("world")
        shutil.copytree(self._place / "prepared", place, dirs_exist_ok=True)
        story = prepared.fresh()
        if story.path.exists() and not workload.closed:
            story.open()
        recorder = Recorder(place)
        story.recorder = recorder
        recorder.kill_at = kill_at
        story.promises_now()
        with recorder.recording():
            began = self._run(workload, story, recorder)
        story.killed()
        finals = {name: tree_below(place / name) for name in story.outputs}
        outcome = Outcome(workload.name, calls=recorder.calls)
        if check:
            limit = self._limit if workload.again is None else min(self._limit, _KILLED_LIMIT)
            self._check(story, recorder, finals, began, seen, outcome, limit)
        if kill_at is not None:
            outcome.wrong = [f"killed at call {kill_at}: {text}" for text in outcome.wrong]
        return outcome

    @staticmethod
    def _run(workload: Workload, story: Story, recorder: Recorder) -> int:
        """Run it, and take it up again if it was killed; return from which entry of the log on the power is cut."""
        try:
            workload.run(story)
            return 0
        except PowerCutError:
            assert workload.again is not None
            story.killed()
            began = len(recorder.log)
            recorder.revive()
            workload.again(story)
            return began

    def _check(
        self,
        story: Story,
        recorder: Recorder,
        finals: dict[str, Tree],
        began: int,
        seen: set[bytes],
        outcome: Outcome,
        limit: int,
    ) -> None:
        cuts = Cuts(recorder.start, recorder.log, list(recorder.live.folders))
        for at, promise in _moments(story, recorder, began):
            cuts.forward(at)
            outcome.cuts += 1
            outcome.bounded += cuts.count() > limit
            mark = repr(promise).encode()
            for state in cuts.states(limit, seed=at):
                print_ = fingerprint(state.tree, mark)
                if print_ in seen:
                    continue
                seen.add(print_)
                if self._deadline is not None and time.monotonic() > self._deadline:
                    outcome.complete = False
                    return
                outcome.states += 1
                write_tree(state.tree, self._empty("world"))
                if (found := wrong(story.place, story, promise, finals)) is not None:
                    outcome.wrong.append(f"cut at entry {at}, choice {state.choice}: {found}")
                    if len(outcome.wrong) >= self._stop_at:
                        return

    def _empty(self, name: str) -> Path:
        place = self._place / name
        if place.exists():
            shutil.rmtree(place)
        place.mkdir()
        return place


def _moments(story: Story, recorder: Recorder, began: int) -> Iterator[tuple[int, Promise]]:
    """The cuts, as numbers of entries that have happened, with what is promised then, in order."""
    moments = {(at, 1) for at, entry in enumerate(recorder.log) if isinstance(entry, Sync)}
    moments |= {(at, side) for at, _ in story.promises for side in (0, 1)}
    moments.add((len(recorder.log), 1))
    changes = story.promises
    done: set[tuple[int, Promise]] = set()
    for at, side in sorted(moments):
        if at < began:
            continue
        known = [promise for when, promise in changes if when < at + side]
        moment = (at, known[-1] if known else changes[0][1])
        if moment not in done:
            done.add(moment)
            yield moment


def fingerprint(tree: Tree, mark: bytes) -> bytes:
    """Return what tells two states apart; the random ends of temporary names do not."""
    hasher = blake3(mark)
    lines = sorted(
        (name.partition(durable.TEMPORARY_MARK)[0], durable.TEMPORARY_MARK in name, data is None, data or b"")
        for name, data in tree.items()
    )
    for name, temporary, folder, data in lines:
        hasher.update(f"{name} {temporary} {folder} {len(data)}\0".encode())
        hasher.update(data)
    return hasher.digest()
