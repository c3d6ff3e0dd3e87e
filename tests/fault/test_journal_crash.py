"""The power is cut at every step of every operation: sealed points stay, and the operation can be repeated."""

from __future__ import annotations

import copy
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.errors import NotFoundError
from secondsite.journal import Journal
from secondsite.model.ids import Epoch, Sequence
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model, digest_of
from support.power import AFTERMATHS, PowerCutError, fingerprint, power, unsynced

pytestmark = pytest.mark.fault

NOW = START + timedelta(minutes=10)
SIZES = {VDA: 24 << 10, VDB: 9 << 10}


@dataclass(frozen=True)
class Case:
    """An operation; the points that must be there whatever happens; and how it is taken up again."""

    prepare: Callable[[Path], tuple[Model, Journal]]
    run: Callable[[Journal, Model], None]
    always: tuple[int, ...]
    finally_: tuple[int, ...]


def small(path: Path, points: int = 5) -> tuple[Model, Journal]:
    model = Model(SIZES)
    journal = model.create(path)
    model.replicate_initially(journal, {VDA: [(0, b"A" * 8192)], VDB: [(8192, b"B" * 1024)]})
    model.seal(journal, {})
    for number in range(2, points + 1):
        fill = bytes([64 + number])
        model.seal(
            journal, {VDA: [(number * 2048, fill * 2560), (512, 512)], VDB: [(number * 512, fill * 512)]}
        )
    return model, journal


def seal_one(journal: Journal, model: Model) -> None:
    """What the source does: ask for the last point, and send the pending one unless that is it."""
    files = {
        VDA: model.parts(VDA, [(0, b"n" * 4096), (4096, 4096)]),
        VDB: model.parts(VDB, [(0, b"n" * 512)]),
    }
    manifest = model.manifest(files)
    for parts in files.values():
        model.send(journal, parts)
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))


def initial(journal: Journal, model: Model) -> None:
    parts = model.parts(VDA, [(0, b"I" * 6144), (8192, 4096)])
    more = model.parts(VDB, [(1024, b"J" * 8192)])
    manifest = model.manifest({})
    status = journal.status()
    if status.state == "initial":
        journal.apply_initial(model.epoch, VDA, model.send(journal, parts))
        journal.apply_initial(model.epoch, VDB, model.send(journal, more))
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))


def initial_with_files(journal: Journal, model: Model) -> None:
    parts = model.parts(VDA, [(0, b"I" * 6144), (8192, 4096)])
    manifest = model.manifest({VDA: parts})
    model.send(journal, parts)
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))


def empty(path: Path) -> tuple[Model, Journal]:
    model = Model(SIZES)
    return model, model.create(path)


def received(path: Path) -> tuple[Model, Journal]:
    """Parts are here, but not applied."""
    model, journal = empty(path)
    model.send(journal, _two_parts(model))
    return model, journal


def apply_received(journal: Journal, model: Model) -> None:
    """A source that got no answer asks again; it sends the parts again only if a crash took them."""
    parts = _two_parts(model)
    manifest = model.manifest({})
    if journal.status().state == "initial":
        try:
            journal.apply_initial(model.epoch, VDA, [digest_of(data) for _, data in parts])
        except NotFoundError:
            journal.apply_initial(model.epoch, VDA, model.send(journal, parts))
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))


def _two_parts(model: Model) -> list[tuple[str, bytes]]:
    model.unique = 77  # the same parts each time
    return model.parts(VDA, [(0, b"I" * 6144), (8192, 4096)])


def fold(journal: Journal, _: Model) -> None:
    journal.maintain(Policy(retention_points=2), NOW)


def thin(journal: Journal, _: Model) -> None:
    if {point.sequence for point in journal.points()} >= {2, 3}:
        journal.thin([Sequence(2), Sequence(3)])
    left = [point.sequence for point in journal.points() if point.sequence in {2, 3}]
    journal.thin(left)


def raise_epoch(journal: Journal, model: Model) -> None:
    journal.raise_epoch(Epoch(2))
    model.epoch = Epoch(2)


def pin(journal: Journal, _: Model) -> None:
    journal.pin(Sequence(2), "test")


ALL = (1, 2, 3, 4, 5)
CASES = {
    "initial": Case(empty, initial, (), (1,)),
    "initial_with_files": Case(empty, initial_with_files, (), (1,)),
    "apply_received": Case(received, apply_received, (), (1,)),
    "seal": Case(small, seal_one, ALL, (*ALL, 6)),
    "fold": Case(small, fold, (4, 5), (4, 5)),
    "thin": Case(small, thin, (1, 4, 5), (1, 4, 5)),
    "raise_epoch": Case(small, raise_epoch, ALL, ALL),
    "pin": Case(small, pin, ALL, ALL),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cut_at_any_step_keeps_every_point(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    seen: set[object] = set()
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=4))  # so that states can be recognized
    with unsynced():
        model, journal = case.prepare(tmp_path / "prepared" / "j")
        journal.close()
        steps = _run(tmp_path, case, model, None, seen)
        assert steps > 2
        for step in range(steps):
            _run(tmp_path, case, model, step, seen)
        assert len(seen) > 3


def _run(tmp_path: Path, case: Case, before: Model, cut_at: int | None, seen: set[object]) -> int:
    """Cut once and check all states that were not seen before; return the number of steps."""
    place = tmp_path / "place"
    shutil.copytree(tmp_path / "prepared", place)
    model = copy.deepcopy(before)
    journal = Journal.open(place / "j", writable=True)
    with power(place / "j", cut_at) as supply:
        try:
            case.run(journal, model)
            assert cut_at is None
        except PowerCutError:
            pass
    for kind in AFTERMATHS:
        target = tmp_path / "after"
        try:
            root = supply.aftermath(kind, target)
            state = (fingerprint(root), model.sequence, model.epoch)
            if state not in seen:
                seen.add(state)
                _check(root, case, before, model)
        except BaseException as error:
            error.add_note(f"cut at step {cut_at}, aftermath: {kind}")
            raise
        shutil.rmtree(target)
    supply.close()
    journal.close()
    shutil.rmtree(place)
    return supply.steps


def _check(path: Path, case: Case, before: Model, cut: Model) -> None:
    """`before` is the source as it was; `cut` holds in addition what was acknowledged."""
    known = copy.deepcopy(before)
    done = copy.deepcopy(before)
    # What the operation was about to make is known too: a point may be there that was not acknowledged.
    known.contents = {**before.contents, **cut.contents}
    with Journal.open(path, writable=False) as reader:
        _check_points(reader, case, known, cut)
    with Journal.open(path, writable=True) as journal:
        _check_points(journal, case, known, cut)
        assert list(journal.verify()) == []
        files = sorted(int(entry.stem) for entry in (path / "points").iterdir())
        assert files == [point.sequence for point in journal.points()]
        assert journal.epoch >= cut.epoch
        case.run(journal, done)
        assert {point.sequence for point in journal.points()} == set(case.finally_)
        done.check(journal, verify=True)
        assert list(journal.verify()) == []
        seal_one(journal, done)
        done.check(journal, verify=True)
        names = [entry.name for entry in path.rglob("*") if ".tmp-" in entry.name]
        assert names == []


def _check_points(journal: Journal, case: Case, known: Model, cut: Model) -> None:
    found = {point.sequence for point in journal.points()}
    assert found >= set(case.always)
    newest = max(cut.contents, default=0)
    assert newest == 0 or newest in found, "an acknowledged point was lost"
    for sequence in found - set(known.contents):
        # not acknowledged, but there: it holds what the source's disks held
        known.contents[sequence] = {disk: bytes(data) for disk, data in cut.disks.items()}
    known.check(journal, verify=False)


def test_a_cut_while_creating_leaves_nothing_or_a_journal(tmp_path: Path) -> None:
    step, steps = 0, 1
    while step < steps:
        with unsynced():
            place = tmp_path / "place"
            place.mkdir()
            with power(place / "j", step) as supply:
                try:
                    Model(SIZES).create(place / "j").close()
                    steps = 0
                except PowerCutError:
                    steps = step + 2
            for kind in AFTERMATHS:
                path = supply.aftermath(kind, tmp_path / "after")
                if path.exists():
                    model = Model(SIZES)
                    with Journal.open(path, writable=True) as journal:
                        initial(journal, model)
                        model.check(journal, verify=True)
                else:
                    Model(SIZES).create(path).close()
                shutil.rmtree(tmp_path / "after")
            supply.close()
            shutil.rmtree(place)
            step += 1
    assert step > 10


def test_a_cut_while_deleting_leaves_a_journal_or_none(tmp_path: Path) -> None:
    with unsynced():
        model, journal = small(tmp_path / "prepared" / "j", points=2)
        journal.close()
        step, steps = 0, 1
        while step < steps:
            place = tmp_path / "place"
            shutil.copytree(tmp_path / "prepared", place)
            journal = Journal.open(place / "j", writable=True)
            with power(place / "j", step) as supply:
                try:
                    journal.delete()
                    steps = 0
                except PowerCutError:
                    steps = step + 2
            for kind in AFTERMATHS:
                path = supply.aftermath(kind, tmp_path / "after")
                if path.exists():
                    with Journal.open(path, writable=True) as journal:
                        model.check(journal, verify=True)
                shutil.rmtree(tmp_path / "after")
            supply.close()
            shutil.rmtree(place)
            step += 1
        assert step > 3
