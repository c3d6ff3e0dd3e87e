"""Folding, thinning, pins and garbage: old points go, the others stay as they are."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.errors import CorruptError, InvalidInputError, NotFoundError, PinnedError
from secondsite.journal import Journal
from secondsite.journal.documents import BaseState
from secondsite.journal.points import Chain
from secondsite.model.ids import Sequence
from secondsite.model.manifest import PointKind
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model, filled

KEEP_2 = Policy(retention_points=2)
_os_open = os.open
SOON = START + timedelta(minutes=10)


def sequences(journal: Journal) -> list[int]:
    return [point.sequence for point in journal.points()]


def files(journal: Journal) -> set[str]:
    return {path.name for path in (journal.path / "logs").iterdir()}


def needed(journal: Journal) -> set[str]:
    names = set()
    for point in journal.points()[1:]:
        for disk in journal.manifest(point.sequence).disks.values():
            names |= {f"{log.digest}.hrl" for log in disk.logs}
            names |= {f"{disk.zeros.digest}.zeros"} if disk.zeros else set()
    return names


def test_maintain_folds_what_retention_gives_up(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=6)
    done = journal.maintain(KEEP_2, SOON)
    assert (done.folded_to, done.points_removed, done.held_by) == (5, 4, None)
    assert done.bytes_freed > 0
    assert sequences(journal) == [5, 6]
    assert files(journal) == needed(journal)
    model.check(journal, verify=True)
    assert list(journal.verify()) == []
    model.seal(journal, {VDA: [(0, b"go on".ljust(512))]})
    model.check(journal, verify=True)
    assert journal.maintain(Policy(), SOON).folded_to is None


def test_retention_by_time_folds_too(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=5)
    done = journal.maintain(Policy(retention_hours=1), START + timedelta(hours=1, minutes=3))
    assert done.folded_to == 3
    model.check(journal, verify=True)


def test_an_empty_journal_can_be_maintained(tmp_path: Path) -> None:
    journal = Model().create(tmp_path / "j")
    assert journal.maintain(KEEP_2, SOON).folded_to is None


def test_a_view_reads_on_while_its_logs_are_folded_and_thinned(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=8)
    reader = Journal.open(tmp_path / "j", writable=False)
    with reader.view(Sequence(7), purpose="test") as view:
        journal.thin([Sequence(3), Sequence(5)])
        assert journal.maintain(KEEP_2, SOON).folded_to == 7
        for disk, expected in model.contents[7].items():
            assert view.disks[disk].read(0, len(expected)) == expected
        model.check(journal, verify=False)
        assert files(journal) > needed(journal)
    journal.maintain(KEEP_2, SOON)
    assert files(journal) == needed(journal)


def test_a_fold_ends_at_the_oldest_pinned_point(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=8)
    view = journal.view(Sequence(4), purpose="drill")
    journal.pin(Sequence(5), "test failover")
    done = journal.maintain(KEEP_2, SOON)
    assert (done.folded_to, done.held_by) == (4, "drill")
    assert {disk: view.disks[disk].read(0, size) for disk, size in model.sizes.items()} == model.contents[4]
    view.close()
    done = journal.maintain(KEEP_2, SOON)
    assert (done.folded_to, done.held_by) == (5, "test failover")
    journal.close()
    with Journal.open(tmp_path / "j", writable=True) as journal:
        assert journal.maintain(KEEP_2, SOON).folded_to is None
        journal.unpin("test failover")
        journal.unpin("test failover")
        assert journal.maintain(KEEP_2, SOON).folded_to == 7
        model.check(journal, verify=True)


def test_a_verifying_view_forbids_folds(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=5)
    with journal.view(purpose="extract", verify=True):
        done = journal.maintain(KEEP_2, SOON)
        assert (done.folded_to, done.held_by) == (None, "extract")
    assert journal.maintain(KEEP_2, SOON).folded_to == 4
    model.check(journal)


def test_pins_of_a_process_that_ended_do_not_hold(tmp_path: Path) -> None:
    _, journal = filled(tmp_path / "j", points=5)
    view = journal.view(Sequence(1), purpose="test")
    left = next((tmp_path / "j" / "pins").glob("view-*.json"))
    text = left.read_text()
    view.close()
    assert not left.exists()
    left.write_text(text)
    assert journal.maintain(KEEP_2, SOON).folded_to == 4
    assert not left.exists()


def test_only_points_that_exist_can_be_pinned(tmp_path: Path) -> None:
    _, journal = filled(tmp_path / "j", points=2)
    with pytest.raises(NotFoundError):
        journal.pin(Sequence(9), "test")
    journal.pin(Sequence(1), "test")
    journal.pin(Sequence(1), "test")
    assert [(pin.sequence, pin.owner, pin.lasting) for pin in journal.pins()] == [(1, "test", True)]


def test_thinning_keeps_all_other_points(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=9)
    before = {point.sequence: point for point in journal.points()}
    journal.thin([Sequence(2), Sequence(4), Sequence(5), Sequence(6)])
    assert sequences(journal) == [1, 3, 7, 8, 9]
    assert files(journal) == needed(journal)
    merged = journal.manifest(Sequence(7))
    assert merged.kind is PointKind.MERGED
    assert merged.replaces == tuple(before[Sequence(n)].digest for n in (4, 5, 6, 7))
    assert merged.time == before[Sequence(7)].time
    model.check(journal, verify=True)
    assert list(journal.verify()) == []
    journal.thin([Sequence(3)])
    assert sequences(journal) == [1, 7, 8, 9]
    assert {before[Sequence(n)].digest for n in (2, 3, 4, 5, 6, 7)} <= set(
        journal.manifest(Sequence(7)).replaces
    )
    model.seal(journal, {VDB: [(0, 4096)]})
    journal.close()
    with Journal.open(tmp_path / "j", writable=True) as journal:
        assert sequences(journal) == [1, 7, 8, 9, 10]
        model.check(journal, verify=True)
        assert journal.maintain(KEEP_2, SOON).folded_to == 9
        model.check(journal, verify=True)


def test_base_newest_and_missing_points_are_not_thinned(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=4)
    for wrong in (1, 3, 4):
        with pytest.raises(InvalidInputError):
            journal.thin([Sequence(wrong)])
    with pytest.raises(NotFoundError):
        journal.thin([Sequence(9)])
    assert journal.thin([]) == 0
    assert sequences(journal) == [1, 2, 3, 4]
    model.check(journal)


def test_a_pinned_point_is_not_thinned(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=6)
    journal.pin(Sequence(3), "test")
    with pytest.raises(PinnedError):
        journal.thin([Sequence(2), Sequence(3)])
    assert sequences(journal) == [1, 2, 3, 4, 5, 6]
    journal.thin([Sequence(2)])
    assert sequences(journal) == [1, 3, 4, 5, 6]
    model.check(journal, verify=True)


def test_damaged_files_are_neither_folded_nor_thinned(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=6)
    log = tmp_path / "j" / "logs" / f"{journal.manifest(Sequence(3)).disks[VDA].logs[0].digest}.hrl"
    good = log.read_bytes()
    log.write_bytes(good[:6000] + bytes([good[6000] ^ 1]) + good[6001:])
    base = (tmp_path / "j" / "base" / "vda.raw").read_bytes()
    with pytest.raises(CorruptError) as caught:
        journal.maintain(KEEP_2, SOON)
    assert (caught.value.attributes["point"], caught.value.attributes["disk"]) == (3, VDA)
    with pytest.raises(CorruptError):
        journal.thin([Sequence(3)])
    assert (tmp_path / "j" / "base" / "vda.raw").read_bytes() == base
    assert sequences(journal) == [1, 2, 3, 4, 5, 6]
    model.send(journal, [("hrl", good)])  # sent again, it is sound again
    assert journal.maintain(KEEP_2, SOON).folded_to == 5
    model.check(journal, verify=True)


def test_damage_beside_a_partly_covered_block_is_not_blessed_by_a_fold(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(0, b"a" * 4096)]})
    for number in range(4):
        model.seal(journal, {VDA: [(512, bytes([65 + number]) * 512)]})
    with (tmp_path / "j" / "base" / "vda.raw").open("r+b") as file:
        file.seek(2000)
        file.write(b"!")
    with pytest.raises(CorruptError) as caught:
        journal.maintain(KEEP_2, SOON)
    assert caught.value.attributes["offset"] == 0
    assert sequences(journal) == [1, 2, 3, 4]


def test_received_files_wait_for_their_point(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=5)
    parts = model.parts(VDA, [(0, b"w" * 512)])
    manifest = model.manifest({VDA: parts})
    digests = model.send(journal, parts)
    journal.maintain(KEEP_2, SOON)
    assert journal.has_file(digests[0], "hrl")
    journal.close()
    journal = Journal.open(tmp_path / "j", writable=True)
    assert journal.has_file(digests[0], "hrl")
    journal.maintain(KEEP_2, SOON)
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))
    model.check(journal, verify=True)


@pytest.mark.parametrize("seals", [0, 1, 3])
def test_a_file_that_is_asked_for_during_garbage_collection_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: int
) -> None:
    """Also if a point names it meanwhile, and more points follow."""
    model, journal = filled(tmp_path / "j", points=5)
    parts = model.parts(VDA, [(0, b"orphan".ljust(512))])
    (digest,) = model.send(journal, parts)
    journal.close()
    journal = Journal.open(tmp_path / "j", writable=True)  # which expects nothing yet
    found = journal._store.chain

    def chain() -> tuple[BaseState, Chain]:
        result = found()
        if journal._expected._collecting:
            monkeypatch.undo()
            assert journal.has_file(digest, "hrl")
            for number in range(seals):
                manifest = model.manifest({VDA: parts} if number == 0 else {})
                model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))
        return result

    monkeypatch.setattr(journal._store, "chain", chain)
    journal.maintain(KEEP_2, SOON)
    model.check(journal, verify=True)
    assert model.sequence == 5 + seals
    assert (tmp_path / "j" / "logs" / f"{digest}.hrl").exists()


def test_files_that_no_point_named_are_collected_after_two_points(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    (digest,) = model.send(journal, Model().parts(VDA, [(0, b"orphan".ljust(512))]))
    left = tmp_path / "j" / "logs" / f"{digest}.hrl"
    model.seal(journal, {})
    journal.maintain(Policy(), SOON)
    assert left.exists()
    model.seal(journal, {})
    journal.maintain(Policy(), SOON)
    assert not left.exists()


def test_delete_refuses_while_somebody_reads(tmp_path: Path) -> None:
    _, journal = filled(tmp_path / "j", points=2)
    with journal.view(purpose="test"), pytest.raises(PinnedError):
        journal.delete()
    assert (tmp_path / "j" / "journal.json").exists()
    journal.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_read_under_the_common_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, journal = filled(tmp_path / "j", points=5)
    journal._store.pins.patience_s = 0
    reader = Journal.open(tmp_path / "j", writable=False)
    monkeypatch.setattr("secondsite.journal.pins.os.open", _read_only_open)
    with reader.view(Sequence(2), purpose="test") as view:
        monkeypatch.undo()
        done = journal.maintain(KEEP_2, SOON)
        assert done.folded_to is None
        assert done.held_by
        assert view.disks[VDA].read(0, 64 << 10) == model.contents[2][VDA]
    assert journal.maintain(KEEP_2, SOON).folded_to == 4


def _read_only_open(path: object, flags: int, mode: int = 0o777) -> int:
    if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return _os_open(path, flags, mode)  # type: ignore[arg-type]


def test_points_lists_what_the_manifests_say(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=3)
    point = journal.points()[1]
    manifest = journal.manifest(Sequence(2))
    assert point.digest == journal.points()[1].digest
    assert (point.epoch, point.time, point.kind) == (1, manifest.time, PointKind.DELTA)
    assert point.changed == sum(disk.changed for disk in manifest.disks.values())
    stored = [log.length for disk in manifest.disks.values() for log in disk.logs]
    stored += [disk.zeros.length for disk in manifest.disks.values() if disk.zeros]
    assert point.stored == sum(stored)
    assert model.sequence == 3
