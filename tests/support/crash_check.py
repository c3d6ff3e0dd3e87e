"""Opens a journal on what a power cut left, and says what is wrong with it.

Right is: what was promised is there; every point that is offered reads as the model remembers it, for a reader and after a
writer's recovery; the scrub finds nothing; and the journal goes on: it takes a point, folds, is opened again, and everything
reads right once more. It changes the state that it looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from secondsite import durable
from secondsite.journal import Finding, Journal, verify_folder
from secondsite.model import ids
from secondsite.model.policy import Policy
from support.crash_disk import Tree
from support.crash_story import NOW, Presence, Promise, Story, open_images
from support.journals import Model

_KEEP_TWO: Final = Policy(retention_points=2)


def wrong(place: Path, story: Story, promise: Promise, finals: Mapping[str, Tree]) -> str | None:
    """Say what is wrong with the state in `place`; None if nothing is. `finals`: what each output holds in the end."""
    try:
        _check_outputs(place, story, promise, finals)
        _check_journal(story.fresh(), promise)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def tree_below(path: Path) -> Tree:
    """Return what is at `path`, a file or a folder."""
    if not path.is_dir():
        return {"": path.read_bytes()}
    return {
        str(below.relative_to(path)): None if below.is_dir() else below.read_bytes()
        for below in sorted(path.rglob("*"))
    }


def _check_outputs(place: Path, story: Story, promise: Promise, finals: Mapping[str, Tree]) -> None:
    for name in story.outputs:
        if (place / name).exists():
            assert name not in finals or tree_below(place / name) == finals[name], f"{name} is wrong"
        else:
            assert name not in promise.outputs, f"{name} was delivered and is not there"


def _check_journal(story: Story, promise: Promise) -> None:
    exists = story.path.exists()
    assert exists or promise.presence is not Presence.MUST, "the journal is gone"
    assert not exists or promise.presence is not Presence.GONE, "the journal was deleted and is here again"
    if exists:
        if promise.damaged:
            with Journal.open(story.path, writable=True, open_base=open_images) as journal:
                story.model.send(journal, promise.damaged)
        with Journal.open(story.path, writable=False, open_base=open_images) as reader:
            _check_points(reader, story.model, promise)
    if promise.presence is not Presence.MUST:
        made = story.make_again(story)
        promise = promise if exists else made
    with Journal.open(story.path, writable=True, open_base=open_images) as journal:
        _check_points(journal, story.model, promise)
        _check_rest(journal, promise)
        _check_sound(journal.verify(), "after the recovery")
        sequence = _go_on(journal, story.model)
        offered = {int(point.sequence) for point in journal.points()}
        assert sequence in offered
    _check_sound(verify_folder(story.path, open_images), "in the end")
    with Journal.open(story.path, writable=False, open_base=open_images) as reader:
        assert {int(point.sequence) for point in reader.points()} == offered
        story.model.check(reader, verify=True)
    left = [path.name for path in story.path.parent.rglob("*") if durable.TEMPORARY_MARK in path.name]
    assert left == [], f"left over: {left}"


def _check_sound(findings: Iterable[Finding], when: str) -> None:
    found = [finding.what for finding in findings]
    assert found == [], f"the scrub finds {when}: {found}"


def _check_points(journal: Journal, model: Model, promise: Promise) -> None:
    status = journal.status()
    assert status.damage is None, status.damage
    found = {int(point.sequence) for point in journal.points()}
    assert found >= promise.points, f"points {sorted(promise.points - found)} are lost"
    unknown = found - set(model.contents)
    assert not unknown, f"points {sorted(unknown)} were never made"
    model.check(journal)


def _check_rest(journal: Journal, promise: Promise) -> None:
    assert journal.epoch >= promise.epoch, "the epoch fell"
    pins = {(pin.owner, int(pin.sequence)) for pin in journal.pins() if pin.lasting}
    assert pins >= promise.pins, f"pins {sorted(promise.pins - pins)} are lost"
    back = {owner for owner, _ in pins} & promise.unpinned
    assert not back, f"pins of {sorted(back)} are back"


def _go_on(journal: Journal, model: Model) -> int:
    """Seal a point as the source would, or replicate initially first; then fold. Return the point's sequence."""
    status = journal.status()
    model.epoch = journal.epoch
    for disk, size in journal.disks.items():
        model.sizes[disk] = max(size, model.sizes[disk])
    if status.state == "initial":
        model.sequence, model.previous = ids.Sequence(100), None
        _resize(model)
        for disk, data in model.disks.items():
            parts = model.parts(disk, [(0, bytes(data))])
            journal.apply_initial(model.epoch, disk, model.send(journal, parts))
        model.seal(journal, {})
    else:
        assert status.last is not None
        model.sequence, model.previous = status.last.sequence, status.last.digest
        model.disks = {
            disk: bytearray(data) for disk, data in model.contents[int(status.last.sequence)].items()
        }
        _resize(model)
    for fill in (b"y", b"z"):
        sequence = model.seal(journal, {disk: [(512, fill * 1024), (4096, 512)] for disk in model.disks})
    journal.maintain(_KEEP_TWO, NOW)
    return int(sequence)


def _resize(model: Model) -> None:
    for disk, size in model.sizes.items():
        model.disks[disk].extend(bytes(size - len(model.disks[disk])))
