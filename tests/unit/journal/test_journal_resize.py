"""A disk that grows: the journal follows, older points keep their size, and a cut anywhere is finished."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.blocks import DigestTable, block_digests
from secondsite.errors import CorruptError, UnavailableError, UnsupportedError
from secondsite.hrl.zeros import encode_zeros
from secondsite.journal import Journal
from secondsite.model.ids import DiskKey, Sequence
from secondsite.model.policy import Policy
from support.journals import KEY, START, VDA, VDB, Model, filled, log_bytes
from support.power import AFTERMATHS, PowerCutError, power, unsynced


def enlarge(model: Model, disk: DiskKey, size: int) -> None:
    model.disks[disk].extend(bytes(size - model.sizes[disk]))
    model.sizes[disk] = size


def test_points_before_and_after_have_their_own_sizes(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=3)
    old = model.sizes[VDB]  # ends within a block
    enlarge(model, VDB, 50 << 10)
    model.seal(journal, {VDB: [(49 << 10, b"n" * 512)]})
    assert journal.disks[VDB] == 50 << 10
    model.check(journal, verify=True)
    with journal.view(Sequence(3), purpose="test") as view:
        assert view.disks[VDB].size == old
    for sequence in (3, 4):
        path = tmp_path / f"{sequence}.tbl"
        with journal.view(Sequence(sequence), purpose="test") as view:
            journal.digests_at(view, VDB, path)
        with DigestTable.open(path, KEY) as table:
            expected = block_digests(model.contents[sequence][VDB], KEY)
            assert table.get(0, len(table)).tolist() == expected.tolist()


def test_a_merged_and_a_folded_journal_of_two_sizes_reads_back(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=4)
    enlarge(model, VDA, 96 << 10)
    model.seal(journal, {VDA: [(90 << 10, b"n" * 4096)]})
    model.seal(journal, {VDA: [(0, b"o" * 4096)]})
    journal.thin([Sequence(4), Sequence(3)])  # merged with a point of the new size
    model.check(journal, verify=True)
    journal.maintain(Policy(retention_points=2), START + timedelta(days=30))
    model.check(journal, verify=True)
    assert list(journal.verify()) == []


def test_a_disk_grows_during_the_initial_replication(tmp_path: Path) -> None:
    model = Model()
    with model.create(tmp_path / "j") as journal:
        model.replicate_initially(journal, {VDA: [(0, b"a" * 4096)], VDB: [(20 << 10, b"b" * 2048)]})
        enlarge(model, VDB, 40 << 10)
        model.replicate_initially(journal, {VDB: [(20 << 10, b"c" * 4096), (36 << 10, b"d" * 4096)]})
        enlarge(model, VDA, 80 << 10)
        model.seal(journal, {})
        model.check(journal, verify=True)


def test_a_smaller_disk_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    sizes = journal.disks
    model.sizes[VDA] -= 4096
    with pytest.raises(UnsupportedError, match="smaller"):
        journal.seal(model.epoch, model.manifest({}).to_bytes())
    assert journal.disks == sizes
    model.check(journal, verify=True)


@pytest.mark.parametrize("kind", ["hrl", "zeros"])
def test_a_file_that_is_not_of_the_points_size_makes_no_point(tmp_path: Path, kind: str) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    beyond = log_bytes(1 << 20, [(0, b"x" * 512)]) if kind == "hrl" else encode_zeros([(64 << 10, 512)])
    model.send(journal, [(kind, beyond)])
    with pytest.raises(CorruptError, match=r"beyond the end|made for a disk"):
        journal.seal(model.epoch, model.manifest({VDA: [(kind, beyond)]}).to_bytes())
    model.check(journal, verify=True)


def test_a_damaged_end_is_not_grown_over(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    with (tmp_path / "j" / "base" / "vdb.raw").open("r+b") as base:
        base.seek(-1, 2)
        base.write(b"?")
    enlarge(model, VDB, 50 << 10)
    with pytest.raises(CorruptError, match="at its end"):
        journal.seal(model.epoch, model.manifest({}).to_bytes())
    assert journal.disks[VDB] == 22 << 10


@pytest.mark.every_step
@pytest.mark.fault
@pytest.mark.parametrize("during", ["initial replication", "a later point"])
def test_a_growth_that_is_cut_anywhere_is_finished(tmp_path: Path, during: str) -> None:
    with unsynced():
        for step in itertools.count():
            place = tmp_path / str(step)
            (place / "p" / "w").mkdir(parents=True)
            model, journal, repeat = _about_to_grow(place / "p" / "w" / "j", during)
            ended = False
            with power(place / "p" / "w", step) as supply:
                try:
                    repeat(journal)
                    ended = True
                except PowerCutError:
                    pass
            journal.close()
            now = {disk: bytes(data) for disk, data in model.disks.items()}
            for kind in AFTERMATHS:
                root = supply.aftermath(kind, place / kind)
                with Journal.open(root / "j", writable=True) as after:
                    _check(model, after, now)
                    repeat(after)
                    _check(model, after, now)
                    assert list(after.verify()) == [], (step, kind)
                    assert after.disks[VDB] == 50 << 10
            supply.close()
            if ended:
                break
        assert step > 8


@pytest.mark.fault
def test_who_reads_a_journal_whose_growth_was_cut_finds_no_damage(tmp_path: Path) -> None:
    """Journal.json has the new size before the digest table: every view that compares was refused, and the scrub accused it."""
    read = 0
    with unsynced():
        for step in itertools.count():
            place = tmp_path / str(step)
            (place / "p" / "w").mkdir(parents=True)
            model, journal, repeat = _about_to_grow(place / "p" / "w" / "j", "a later point")
            ended = False
            with power(place / "p" / "w", step) as supply:
                try:
                    repeat(journal)
                    ended = True
                except PowerCutError:
                    pass
            journal.close()
            now = {disk: bytes(data) for disk, data in model.disks.items()}
            root = supply.aftermath("killed", place / "killed")
            with Journal.open(root / "j", writable=False) as reader:
                assert list(reader.verify()) == [], step
                with suppress(UnavailableError):  # the block at the old end has no digest for a moment
                    _check(model, reader, now)
                    read += 1
            supply.close()
            if ended:
                break
    assert read > step // 2


def _about_to_grow(path: Path, during: str) -> tuple[Model, Journal, Callable[[Journal], None]]:
    """Return what makes it grow, which may be repeated: the last thing that the source does is to seal."""
    if during == "a later point":
        model, journal = filled(path, points=2)
        enlarge(model, VDB, 50 << 10)
        files = {VDB: model.parts(VDB, [(48 << 10, b"n" * 1024)])}
        model.send(journal, files[VDB])
        manifest = model.manifest(files).to_bytes()
        return model, journal, lambda journal: _seal(journal, model, manifest)
    model = Model()
    journal = model.create(path)
    model.replicate_initially(journal, {VDB: [(0, b"b" * (22 << 10))]})
    enlarge(model, VDB, 50 << 10)
    parts = model.parts(VDB, [(20 << 10, b"c" * 4096)])
    digests = model.send(journal, parts)
    manifest = model.manifest({}).to_bytes()

    def replicate(journal: Journal) -> None:
        if journal.status().last is None:
            model.send(journal, parts)
            journal.apply_initial(model.epoch, VDB, digests)
        _seal(journal, model, manifest)

    return model, journal, replicate


def _seal(journal: Journal, model: Model, manifest: bytes) -> None:
    journal.seal(model.epoch, manifest)


def _check(model: Model, journal: Journal, now: dict[DiskKey, bytes]) -> None:
    for point in journal.points():
        with journal.view(point.sequence, purpose="test", verify=True) as view:
            for disk, data in model.contents.get(point.sequence, now).items():
                assert view.disks[disk].size == len(data)
                assert view.disks[disk].read(0, len(data)) == data, point.sequence
