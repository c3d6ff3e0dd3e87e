"""A process is killed at any call, another takes its work up and is answered, and then the power is cut: what was answered stays.

What the dead process had named and not synced is seen by the next one as if it were durable; these are the places where that
was believed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secondsite.durable import FileLock
from secondsite.errors import ConflictError
from secondsite.journal import Journal, finish_deletes
from support.crash_disk import Sync
from support.crash_lives import seal_grown
from support.crash_recorder import Recorder
from support.crash_states import Cuts, write_tree
from support.crash_story import Story, open_images
from support.crash_workloads import nothing, pinned, some, turned
from support.power import PowerCutError, unsynced

pytestmark = pytest.mark.fault


def killed_then_cut(
    folder: Path,
    prepare: Callable[[Story], None],
    run: Callable[[Story], None],
    again: Callable[[Story], None],
    *,
    lost: str | None = None,
) -> Iterator[Story]:
    """Kill `run` at each of its calls, do `again`, cut the power, and yield the story.

    Only what was synced is there then; with `lost` all that was done but the names in that folder that were not synced, also just
    before the first sync after the kill.
    """
    with unsynced():
        story = Story(folder / "world")
        story.place.mkdir()
        prepare(story)
        story.close()
        story.place.rename(folder / "prepared")
        kill_at, ended = 0, False
        while not ended:
            shutil.copytree(folder / "prepared", story.place)
            life = story.fresh()
            recorder = Recorder(story.place)
            recorder.kill_at = kill_at
            began = _live(life, recorder, run, again)
            ended = began == 0
            life.killed()
            place = recorder.place(story.place / lost / "any") if lost else None
            cuts = Cuts(recorder.start, recorder.log, list(recorder.live.folders))
            end = len(recorder.log)
            synced = [at for at in range(max(0, began - 1), end) if isinstance(recorder.log[at], Sync)]
            for at in [*synced[:1], end] if lost else [end]:
                cuts.forward(at)
                shutil.rmtree(story.place)
                story.place.mkdir()
                write_tree(cuts.all_but(place[0]) if place else cuts.nothing(), story.place)
                yield life
            shutil.rmtree(story.place)
            kill_at += 1
        assert kill_at > 3


def _live(
    story: Story, recorder: Recorder, run: Callable[[Story], None], again: Callable[[Story], None]
) -> int:
    """Return at which entry of the log it died, plus one; 0 if it lived."""
    with recorder.recording():
        try:
            run(story)
        except PowerCutError:
            story.killed()
            died = len(recorder.log) + 1
            recorder.revive()
            again(story)
            return died
        return 0


def opened(story: Story) -> Journal:
    return Journal.open(story.path, writable=True, open_base=open_images)


def test_a_journal_whose_maker_was_killed_keeps_its_name(tmp_path: Path) -> None:
    def again(story: Story) -> None:
        if story.path.exists():
            story.open()
        else:
            story.create()

    for story in killed_then_cut(tmp_path, nothing, Story.create, again):
        opened(story).close()


def test_the_first_journal_of_a_new_store_keeps_its_name(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    story = Story(tmp_path)
    with unsynced(), recorder.recording():
        story.create()
    story.close()
    cuts = Cuts(recorder.start, recorder.log, list(recorder.live.folders))
    cuts.forward(len(recorder.log))
    assert "store/j/journal.json" in cuts.nothing()


def test_a_base_that_a_killed_process_had_grown_is_as_large_as_the_journal_says(tmp_path: Path) -> None:
    def run(story: Story) -> None:
        story.open()
        seal_grown(story)

    for story in killed_then_cut(tmp_path, some, run, run):
        with opened(story) as journal:
            assert {int(point.sequence) for point in journal.points()} == {1, 2, 3, 4}
            story.model.check(journal, verify=True)


def test_a_pin_that_a_killed_process_had_removed_stays_removed(tmp_path: Path) -> None:
    def run(story: Story) -> None:
        story.open()
        story.journal.unpin("a test failover")

    for story in killed_then_cut(tmp_path, pinned, run, run):
        with opened(story) as journal:
            assert [pin.owner for pin in journal.pins()] == ["another"]


def test_an_adoption_taken_up_by_another_process_keeps_tables_or_journal(tmp_path: Path) -> None:
    for story in killed_then_cut(tmp_path, turned, Story.adopt, Story.adopt, lost="store"):
        story.adopted().close()


def test_a_journal_that_is_being_deleted_is_never_half_back(tmp_path: Path) -> None:
    def run(story: Story) -> None:
        story.open()
        story.delete()

    def again(story: Story) -> None:
        finish_deletes(story.path.parent)

    for story in killed_then_cut(tmp_path, some, run, again, lost="store"):
        if story.path.exists():
            with opened(story) as journal:
                assert len(journal.points()) == 3


def test_a_lock_is_taken_on_a_full_disk_and_given_back_when_taking_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    def killed(*_: object) -> int:
        raise PowerCutError

    lock = FileLock(tmp_path / "lock")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", killed)
        with pytest.raises(PowerCutError):
            lock.acquire()
        patch.setattr(os, "pwrite", full)
        with lock, pytest.raises(ConflictError):
            FileLock(tmp_path / "lock").acquire()
