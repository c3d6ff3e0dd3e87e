"""Points are made, read back, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from secondsite.blocks import DigestTable
from secondsite.errors import (
    ConflictError,
    CorruptError,
    InvalidInputError,
    NoSpaceError,
    NotFoundError,
    OperationRefusedError,
    OutOfSequenceError,
    StaleEpochError,
    UnsupportedError,
)
from secondsite.hrl.zeros import encode_zeros
from secondsite.journal import Journal
from secondsite.model.ids import Digest, Epoch, ItemId, Sequence
from secondsite.model.manifest import DiskPoint, PointKind
from support.journals import ITEM, KEY, VDA, VDB, Model, digest_of, filled, log_bytes


def test_every_point_reads_back_as_it_was(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j")
    assert [point.sequence for point in journal.points()] == [1, 2, 3, 4, 5]
    model.check(journal)
    model.check(journal, verify=True)


def test_a_reader_sees_what_the_writer_sealed(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j")
    reader = Journal.open(tmp_path / "j", writable=False)
    model.check(reader)
    model.seal(journal, {VDA: [(0, b"new!" * 128)]})
    assert reader.status().last == journal.status().last
    model.check(reader)
    with pytest.raises(ConflictError):
        reader.raise_epoch(Epoch(2))


def test_reopening_changes_nothing(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j")
    before = journal.status()
    journal.close()
    with Journal.open(tmp_path / "j", writable=True) as journal:
        assert journal.status() == before
        assert (journal.item, journal.name, journal.key, dict(journal.disks)) == (
            ITEM,
            "web",
            KEY,
            model.sizes,
        )
        model.check(journal, verify=True)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    _, journal = filled(tmp_path / "j", points=1)
    with pytest.raises(ConflictError):
        Journal.open(tmp_path / "j", writable=True)
    journal.close()
    Journal.open(tmp_path / "j", writable=True).close()


def test_create_refuses_what_exists_and_open_what_does_not(tmp_path: Path) -> None:
    Model().create(tmp_path / "j").close()
    with pytest.raises(ConflictError):
        Model().create(tmp_path / "j")
    with pytest.raises(NotFoundError):
        Journal.open(tmp_path / "other", writable=False)


def test_an_empty_journal_has_no_point(tmp_path: Path) -> None:
    journal = Model().create(tmp_path / "j")
    assert journal.status().state == "initial"
    assert journal.points() == []
    with pytest.raises(NotFoundError):
        journal.view(purpose="test")


def test_initial_parts_may_be_sent_and_applied_twice(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    parts = model.parts(VDA, [(0, b"a" * 8192), (8192, 512)])
    digests = model.send(journal, parts)
    journal.apply_initial(model.epoch, VDA, digests)
    journal.apply_initial(model.epoch, VDA, digests)
    assert not journal.has_file(digests[0], "hrl")
    journal.close()
    with Journal.open(tmp_path / "j", writable=True) as journal:
        with pytest.raises(NotFoundError):  # another writer does not know
            journal.apply_initial(model.epoch, VDA, digests)
        journal.apply_initial(model.epoch, VDA, model.send(journal, parts))
        with pytest.raises(NotFoundError):
            journal.apply_initial(model.epoch, VDA, [digest_of(b"never sent")])
        model.seal(journal, {})
        model.check(journal, verify=True)
        with pytest.raises(OperationRefusedError):
            journal.apply_initial(model.epoch, VDA, digests)


def test_a_list_of_zeros_that_recurs_is_applied_again(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    for write in [(0, 4096), (0, b"x" * 4096), (0, 4096)]:
        journal.apply_initial(model.epoch, VDA, model.send(journal, model.parts(VDA, [write])))
    model.seal(journal, {})
    model.check(journal, verify=True)


def test_a_first_point_that_was_cut_by_a_full_disk_is_settled_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NoSpaceError("full")

    model = Model()
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(0, b"a" * 8192)]})
    manifest = model.manifest({})
    with monkeypatch.context() as patch:
        patch.setattr("secondsite.journal.documents.replace", full)
        with pytest.raises(NoSpaceError):
            journal.seal(model.epoch, manifest.to_bytes())
        assert journal.status().state == "initial"
        with pytest.raises(NoSpaceError):
            journal.apply_initial(model.epoch, VDA, [])
    parts = Model().parts(VDA, [(0, b"b" * 8192)])
    with pytest.raises(OperationRefusedError):
        journal.apply_initial(model.epoch, VDA, model.send(journal, parts))
    assert journal.status().state == "ready"
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))
    model.check(journal, verify=True)


def test_a_list_of_zeros_that_two_disks_share_is_applied_to_each(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {disk: [(0, b"x" * 8192)] for disk in (VDA, VDB)})
    (zeros,) = model.send(journal, model.parts(VDA, [(0, 4096)]))
    journal.apply_initial(model.epoch, VDA, [zeros])
    with pytest.raises(NotFoundError):
        journal.apply_initial(model.epoch, VDB, [zeros])
    model.replicate_initially(journal, {VDB: [(0, 4096)]})
    journal.apply_initial(model.epoch, VDB, [zeros])
    model.seal(journal, {})
    model.check(journal, verify=True)


def test_the_first_point_waits_for_a_part_that_was_cut(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(0, b"a" * 8192)]})
    with DigestTable.open(tmp_path / "j" / "base" / "vda.tbl", KEY, writable=True) as table:
        table.mark_unknown(1, 1)
    with pytest.raises(OutOfSequenceError):
        model.seal(journal, {})
    model.replicate_initially(journal, {VDA: [(4096, b"b" * 4096)]})
    model.seal(journal, {})
    model.check(journal, verify=True)


def test_the_first_point_may_name_files_of_its_own(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(0, b"a" * 8192)]})
    model.seal(journal, {VDA: [(4096, b"b" * 8192)], VDB: [(0, b"c" * 512)]})
    model.seal(journal, {VDA: [(512, b"d" * 512)]})
    model.check(journal, verify=True)


def test_sealing_the_last_point_again_is_answered_yes(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    data = journal.manifest().to_bytes()
    assert journal.seal(model.epoch, data) == model.previous
    assert len(journal.points()) == 2


def test_a_point_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    good = model.manifest({})
    for bad in (
        dataclasses.replace(good, previous=None),
        dataclasses.replace(good, previous=digest_of(b"another")),
        dataclasses.replace(good, sequence=Sequence(2)),
        dataclasses.replace(good, sequence=Sequence(1)),
    ):
        with pytest.raises(OutOfSequenceError):
            journal.seal(model.epoch, bad.to_bytes())
    gap = dataclasses.replace(good, sequence=Sequence(9))
    journal.seal(model.epoch, gap.to_bytes())
    assert [point.sequence for point in journal.points()] == [1, 2, 9]


def test_the_first_point_must_be_an_initial_one(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    with pytest.raises(OutOfSequenceError):
        journal.seal(model.epoch, model.manifest({}, kind=PointKind.RESYNC).to_bytes())
    with pytest.raises(OutOfSequenceError):
        journal.seal(
            model.epoch, dataclasses.replace(model.manifest({}), previous=digest_of(b"x")).to_bytes()
        )


def test_epochs_only_rise_and_older_ones_are_refused(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    old = model.manifest({})
    with pytest.raises(OperationRefusedError):
        journal.seal(Epoch(2), dataclasses.replace(old, epoch=Epoch(2)).to_bytes())
    journal.raise_epoch(Epoch(3))
    journal.raise_epoch(Epoch(3))
    with pytest.raises(StaleEpochError):
        journal.raise_epoch(Epoch(2))
    with pytest.raises(StaleEpochError):
        journal.seal(model.epoch, old.to_bytes())
    with pytest.raises(InvalidInputError):
        journal.seal(Epoch(3), old.to_bytes())
    journal.close()
    with Journal.open(tmp_path / "j", writable=True) as journal:
        assert journal.epoch == 3
        model.epoch = Epoch(3)
        model.seal(journal, {VDA: [(0, b"n" * 512)]})
        model.check(journal)


def test_another_item_or_other_disks_are_refused(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=1)
    good = model.manifest({})
    with pytest.raises(InvalidInputError):
        journal.seal(
            model.epoch,
            dataclasses.replace(good, item=ItemId("6f1f4a3e-0000-4000-8000-000000000002")).to_bytes(),
        )
    for disks in ({VDA: good.disks[VDA]}, {**good.disks, VDB: DiskPoint(20 << 10)}):
        with pytest.raises(UnsupportedError) as caught:
            journal.seal(model.epoch, dataclasses.replace(good, disks=disks).to_bytes())
        assert caught.value.hint
    with pytest.raises(InvalidInputError):
        journal.seal(model.epoch, dataclasses.replace(good, kind=PointKind.MERGED).to_bytes())


def test_a_point_whose_files_did_not_all_arrive_is_refused(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=1)
    parts = model.parts(VDA, [(0, b"q" * 512)])
    manifest = model.manifest({VDA: parts})
    with pytest.raises(NotFoundError):
        journal.seal(model.epoch, manifest.to_bytes())
    model.send(journal, parts)
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))
    model.check(journal)


def test_files_of_one_point_must_be_disjoint(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=1)
    parts = [*model.parts(VDA, [(0, b"q" * 4096)]), ("zeros", encode_zeros([(2048, 512)]))]
    model.send(journal, parts)
    with pytest.raises(CorruptError):
        journal.seal(model.epoch, model.manifest({VDA: parts}).to_bytes())
    assert len(journal.points()) == 1


def test_a_log_of_another_disk_is_refused(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=1)
    parts = model.parts(VDB, [(0, b"q" * 4096)])
    model.send(journal, parts)
    with pytest.raises(CorruptError):
        journal.seal(model.epoch, model.manifest({VDA: parts}).to_bytes())


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("hrl", b"no log at all"),
        (
            "hrl",
            log_bytes(20 << 10, [(0, b"x" * 512)]),
        ),  # of a smaller disk than any; a larger one may have grown
        ("hrl", log_bytes(64 << 10, [(0, b"x" * 512)])[:-512]),
        ("zeros", b"SSZEROS\n"),
    ],
)
def test_malformed_files_are_not_taken_in(tmp_path: Path, kind: str, data: bytes) -> None:
    journal = Model().create(tmp_path / "j")
    with journal.receive(digest_of(data), kind) as incoming:  # type: ignore[arg-type]
        incoming.write(data)
        with pytest.raises(CorruptError):
            incoming.commit()
    assert list((tmp_path / "j" / "logs").iterdir()) == []
    assert list((tmp_path / "j" / "incoming").iterdir()) == []


def test_bytes_that_do_not_match_their_digest_are_not_taken_in(tmp_path: Path) -> None:
    journal = Model().create(tmp_path / "j")
    with journal.receive(digest_of(b"something else"), "hrl") as incoming:
        incoming.write(log_bytes(64 << 10, [(0, b"x" * 512)]))
        with pytest.raises(CorruptError):
            incoming.commit()
    with journal.receive(digest_of(b"abandoned"), "hrl") as incoming:
        incoming.write(b"half")
    assert list((tmp_path / "j" / "incoming").iterdir()) == []
    with pytest.raises(InvalidInputError):
        journal.has_file(Digest("../../etc/passwd"), "hrl")


def test_time_may_go_backwards(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=2)
    model.seal(journal, {}, time=journal.points()[0].time)
    assert len(journal.points()) == 3


def test_extents_tell_zeros_from_data_without_gaps(tmp_path: Path) -> None:
    model = Model({VDA: 1 << 20})
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(0, b"a" * 65536), (262144, b"b" * 65536)]})
    model.seal(journal, {})
    model.seal(journal, {VDA: [(0, 4096), (524288, b"c" * 4096)]})
    for verify in (False, True):
        with journal.view(purpose="test", verify=verify) as view:
            disk = view.disks[VDA]
            extents = list(disk.extents(0, disk.size))
            assert [(extent.offset, extent.length, extent.zero) for extent in extents] == [
                (0, 4096, True),
                (4096, 61440, False),
                (65536, 196608, True),
                (262144, 65536, False),
                (327680, 196608, True),
                (524288, 4096, False),
                (528384, 520192, True),
            ]
            assert [tuple(extent) for extent in disk.extents(5000, 100)] == [(5000, 100, False)]
            for extent in extents:
                if extent.zero:
                    assert not any(disk.read(extent.offset, extent.length))


def test_a_read_outside_of_the_disk_is_refused(tmp_path: Path) -> None:
    _, journal = filled(tmp_path / "j", points=1)
    with journal.view(purpose="test") as view:
        with pytest.raises(InvalidInputError):
            view.disks[VDA].read((64 << 10) - 511, 512)
        with pytest.raises(NotFoundError):
            journal.view(Sequence(7), purpose="test")
