"""A disk that grows while its journal is folded, or compared with its digests: nobody takes the other's last block for damaged, and
nobody waits long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.blocks import DigestTable
from secondsite.errors import NoSpaceError, UnavailableError
from secondsite.journal import Journal, apply, scrub
from secondsite.journal.base import Base
from secondsite.journal.proof import BaseProof
from secondsite.model.ids import DiskKey, Sequence
from secondsite.model.policy import Policy
from secondsite.model.units import BLOCK
from support.journals import START, VDA, VDB, Model, filled

LATER = START + timedelta(days=30)
KEEP_3 = Policy(retention_points=3)
GROWN = 80 << 10


def about_to_fold(path: Path) -> tuple[Model, Journal]:
    """The points that are given up have written into the last block of vdb, which is a short one."""
    model, journal = filled(path, points=3)
    model.seal(journal, {VDB: [(model.sizes[VDB] - 512, b"t" * 512)]})
    for fill in b"ABC":
        model.seal(journal, {VDA: [(0, bytes([fill]) * 4096)]})
    return model, journal


def growing_point(model: Model, journal: Journal, disk: DiskKey) -> Callable[[], None]:
    """Send the files of a point at which the disk has grown; return what seals it, which may be repeated."""
    model.disks[disk].extend(bytes(GROWN - model.sizes[disk]))
    model.sizes[disk] = GROWN
    files = {disk: model.parts(disk, [(GROWN - 4096, b"n" * 4096)])}
    model.send(journal, files[disk])
    manifest = model.manifest(files)

    def seal() -> None:
        model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))

    return seal


def during_fold_of(
    monkeypatch: pytest.MonkeyPatch, size: int, do: Callable[[], None], *, written: bool = True
) -> list[int]:
    """Have `do` called once, when the fold has opened a disk of that size; and has written it, but not yet its digests."""
    flush, apply_ = apply._Cells.flush, apply.apply
    done: list[int] = []

    def once(base: Base) -> None:
        if not done and base.size == size:
            done.append(size)
            do()

    def flushed(cells: apply._Cells) -> None:
        once(cells._base)
        flush(cells)

    def applied(base: Base, *rest: Any) -> None:
        once(base)
        apply_(base, *rest)

    if written:
        monkeypatch.setattr(apply._Cells, "flush", flushed)
    else:
        monkeypatch.setattr(apply, "apply", applied)
    return done


def check_and_fold_on(model: Model, journal: Journal) -> None:
    """All is sound, and folds go on over the block at the old end of vdb."""
    assert list(journal.verify()) == []
    model.check(journal, verify=True)
    model.seal(journal, {VDB: [((22 << 10) - 1024, b"u" * 512)]})
    for fill in b"KLM":
        model.seal(journal, {VDA: [(0, bytes([fill]) * 4096)]})
    assert journal.maintain(KEEP_3, LATER).folded_to is not None
    assert list(journal.verify()) == []
    model.check(journal, verify=True)


@pytest.mark.parametrize("written", [False, True], ids=["opened", "written"])
def test_a_disk_that_ends_within_a_block_grows_when_the_fold_that_writes_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """It grew, and then the fold gave the whole block the digest of the short one: damage where there was none, and no fold any more."""
    model, journal = about_to_fold(tmp_path / "j")
    old = model.sizes[VDB]
    seal = growing_point(model, journal, VDB)

    def refused() -> None:
        with pytest.raises(UnavailableError, match="fold"):
            seal()
        assert journal.disks[VDB] == old
        journal.status()  # nobody else is held up

    done = during_fold_of(monkeypatch, old, refused, written=written)
    assert journal.maintain(KEEP_3, LATER).folded_to is not None
    assert done
    seal()
    check_and_fold_on(model, journal)


@pytest.mark.parametrize("written", [False, True], ids=["opened", "written"])
def test_a_disk_of_whole_blocks_grows_while_a_fold_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    model, journal = about_to_fold(tmp_path / "j")
    done = during_fold_of(monkeypatch, model.sizes[VDA], growing_point(model, journal, VDA), written=written)
    assert journal.maintain(KEEP_3, LATER).folded_to is not None
    assert done
    assert journal.disks[VDA] == GROWN
    check_and_fold_on(model, journal)


@pytest.mark.parametrize("written", [False, True], ids=["opened", "written"])
def test_a_point_that_does_not_grow_is_sealed_while_a_fold_writes_a_disk_that_ends_within_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    model, journal = about_to_fold(tmp_path / "j")

    def seal() -> None:
        model.seal(journal, {VDB: [(0, b"s" * 4096)]})

    done = during_fold_of(monkeypatch, model.sizes[VDB], seal, written=written)
    assert journal.maintain(KEEP_3, LATER).folded_to is not None
    assert done
    check_and_fold_on(model, journal)


class _Announced:
    """A lock that tells when somebody wants it."""

    def __init__(self, wanted: threading.Event) -> None:
        self._lock = threading.Lock()
        self._wanted = wanted
        self.release = self._lock.release

    def acquire(self, *, blocking: bool) -> bool:
        return self._lock.acquire(blocking=blocking)

    def __enter__(self) -> None:
        self._wanted.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_fold_that_meets_a_growth_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found journal.json with the new size and the digest table with the old one, and called that damage."""
    model, journal = about_to_fold(tmp_path / "j")
    seal = growing_point(model, journal, VDA)
    met = threading.Event()
    journal._store.growth = _Announced(met)  # type: ignore[assignment]
    errors: list[BaseException] = []
    folds: list[threading.Thread] = []

    def fold() -> None:
        try:
            journal.maintain(KEEP_3, LATER)
        except BaseException as error:
            errors.append(error)
        met.set()

    grow = DigestTable.resize

    def slowly(table: DigestTable, size: int) -> None:
        folds.append(threading.Thread(target=fold))
        folds[0].start()
        assert met.wait(20)
        grow(table, size)

    monkeypatch.setattr(DigestTable, "resize", slowly)
    monkeypatch.setattr(Journal, "_tidy", lambda *_: None)  # it would wait for the seal's end already
    seal()
    folds[0].join(20)
    assert errors == []
    monkeypatch.undo()
    check_and_fold_on(model, journal)


def test_maintenance_finishes_a_growth_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the journal was opened again, each fold found a digest table of the wrong size."""
    model, journal = about_to_fold(tmp_path / "j")
    seal = growing_point(model, journal, VDB)
    with monkeypatch.context() as patched:
        patched.setattr(DigestTable, "resize", _full)
        with pytest.raises(NoSpaceError):
            seal()
    assert journal.maintain(KEEP_3, LATER).folded_to is not None
    assert list(journal.verify()) == []
    seal()
    check_and_fold_on(model, journal)


def test_while_a_growth_finds_no_room_folds_say_so_and_garbage_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, journal = about_to_fold(tmp_path / "j")
    seal = growing_point(model, journal, VDB)
    with monkeypatch.context() as patched:
        patched.setattr(DigestTable, "resize", _full)
        with pytest.raises(NoSpaceError):
            seal()
        with pytest.raises(UnavailableError, match="grow"):
            journal.maintain(KEEP_3, LATER)
        assert journal.maintain(Policy(retention_points=100), START).folded_to is None
    assert journal.maintain(KEEP_3, LATER).folded_to is not None
    seal()
    check_and_fold_on(model, journal)


def test_a_growth_after_a_fold_that_was_cut_finds_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fold's data are in the last block, its digest is not: the next maintenance writes it."""
    model, journal = about_to_fold(tmp_path / "j")
    old = model.sizes[VDB]
    seal = growing_point(model, journal, VDB)

    def cut() -> None:
        raise NoSpaceError("the disk is full")

    during_fold_of(monkeypatch, old, cut)
    with pytest.raises(NoSpaceError):
        journal.maintain(KEEP_3, LATER)
    with pytest.raises(UnavailableError, match="fold"):
        seal()
    journal.maintain(KEEP_3, LATER)
    seal()
    check_and_fold_on(model, journal)


@pytest.mark.parametrize("process", ["ours", "another"])
def test_a_view_that_was_opened_before_a_growth_says_that_the_old_end_cannot_be_compared(
    tmp_path: Path, process: str
) -> None:
    """It said that the base was damaged there."""
    model, journal = filled(tmp_path / "j", points=1)
    expected, old = bytes(model.disks[VDB]), model.sizes[VDB]
    end = old // BLOCK * BLOCK
    reader = journal if process == "ours" else Journal.open(tmp_path / "j", writable=False)
    with reader.view(purpose="test", verify=True) as view:
        growing_point(model, journal, VDB)()
        assert view.disks[VDB].read(0, end) == expected[:end]
        with pytest.raises(UnavailableError, match="growth"):
            view.disks[VDB].read(end, old - end)
    with journal.view(Sequence(1), purpose="test", verify=True) as view:
        assert view.disks[VDB].read(0, old) == expected


@pytest.mark.parametrize("process", ["ours", "another"])
def test_a_scrub_finds_no_damage_where_a_disk_grows_meanwhile(
    tmp_path: Path, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, journal = filled(tmp_path / "j", points=1)
    reader = journal if process == "ours" else Journal.open(tmp_path / "j", writable=False)
    old = model.sizes[VDB]
    seal = growing_point(model, journal, VDB)
    grown: list[int] = []

    def opened(base: Base, *rest: Any) -> BaseProof:
        if base.size == old:
            grown.append(old)
            seal()
        return BaseProof(base, *rest)

    monkeypatch.setattr(scrub, "BaseProof", opened)
    assert list(reader.verify()) == []
    assert grown


@pytest.mark.parametrize("disk", [VDA, VDB])
def test_a_reader_that_began_before_a_disk_grew_opens_its_base_as_it_is_now(
    tmp_path: Path, disk: DiskKey
) -> None:
    model, journal = filled(tmp_path / "j", points=1)
    expected = model.contents[1][disk]
    readers = [Journal.open(tmp_path / "j", writable=False) for _ in range(2)]
    # Logs are looked at first, for hours perhaps; only then the bases are opened.
    growing_point(model, journal, disk)()
    assert list(readers[0].verify()) == []
    with readers[1].view(Sequence(1), purpose="test", verify=True) as view:
        cut = len(expected) // BLOCK * BLOCK
        assert view.disks[disk].read(0, cut) == expected[:cut]


def _full(*_: object) -> None:
    raise NoSpaceError("the disk is full")
