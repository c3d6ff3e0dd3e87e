"""A journal on images that hold a point already: what a reversed item starts from."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.blocks import UNKNOWN, DigestTable
from secondsite.errors import ConflictError, CorruptError, InvalidInputError, PinnedError, UnsupportedError
from secondsite.journal import Base, BaseSpec, Journal, RawBase, finish_deletes
from secondsite.model.ids import DiskKey, Epoch, Sequence
from secondsite.model.policy import Policy
from support.journals import KEY, START, VDA, VDB, filled
from support.power import PowerCutError, power, unsynced


def open_images(spec: BaseSpec, writable: bool) -> Base:
    """Images of the format raw, without qemu-nbd."""
    assert spec.format == "raw" or spec.kind == "raw"
    return RawBase(spec.path, spec.size, writable=writable)


class Side:
    """The old journal of an item, and the images and tables that failover left."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.model, old = filled(folder / "old", points=4)
        self.manifest = old.manifest().to_bytes()
        self.images: dict[DiskKey, Path] = {}
        self.tables: dict[DiskKey, Path] = {}
        with old.view(purpose="test") as view:
            for disk in (VDA, VDB):
                self.images[disk] = folder / f"{disk}.img"
                self.images[disk].write_bytes(self.model.contents[4][disk])
                self.tables[disk] = folder / f"{disk}.tbl"
                old.digests_at(view, disk, self.tables[disk])
        old.close()
        self.model.contents = {4: self.model.contents[4]}
        self.model.epoch = Epoch(2)
        self.path = folder / "new"

    def adopt(self) -> Journal:
        return Journal.adopt(
            self.path,
            manifest=self.manifest,
            epoch=Epoch(2),
            key=KEY,
            images=self.images,
            tables=self.tables,
            open_base=open_images,
            formats=dict.fromkeys(self.images, "raw"),
        )


def test_an_adopted_journal_goes_on_from_its_point(tmp_path: Path) -> None:
    side = Side(tmp_path)
    with side.adopt() as journal:
        status = journal.status()
        assert (status.state, status.epoch, status.base, status.points) == ("ready", 2, 4, 1)
        assert not any(table.exists() for table in side.tables.values())
        for number in range(3):
            side.model.seal(journal, {VDA: [(number * 512, bytes([65 + number]) * 1024)], VDB: [(0, 4096)]})
        side.model.check(journal, verify=True)
        assert journal.maintain(Policy(retention_points=2), START + timedelta(hours=1)).folded_to == 6
        side.model.check(journal, verify=True)
        assert list(journal.verify()) == []
    assert side.images[VDA].read_bytes() == side.model.contents[6][VDA]


def test_adopting_twice_is_the_same_as_once(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.adopt().close()
    side.adopt().close()
    side.manifest = dataclasses.replace(side.model.manifest({}), sequence=Sequence(9)).to_bytes()
    with pytest.raises(ConflictError):
        side.adopt()


def test_unknown_cells_are_computed_from_the_image(tmp_path: Path) -> None:
    side = Side(tmp_path)
    with DigestTable.open(side.tables[VDA], KEY, writable=True) as table:
        table.mark_unknown(0, 5)
    with side.adopt() as journal:
        side.model.check(journal, verify=True)
        assert list(journal.verify()) == []
    with DigestTable.open(side.path / "base" / "vda.tbl", KEY) as table:
        assert UNKNOWN not in table.get(0, len(table))


def test_an_image_that_does_not_hold_the_point_is_found(tmp_path: Path) -> None:
    side = Side(tmp_path)
    data = bytearray(side.images[VDB].read_bytes())
    data[9000] ^= 1
    side.images[VDB].write_bytes(data)
    with side.adopt() as journal:
        (finding,) = journal.verify()
        assert (finding.disk, finding.offset) == (VDB, 8192)
        with journal.view(purpose="test", verify=True) as view, pytest.raises(CorruptError):
            view.disks[VDB].read(8192, 4096)


def test_images_and_tables_for_all_disks_are_needed(tmp_path: Path) -> None:
    side = Side(tmp_path)
    del side.images[VDB]
    with pytest.raises(InvalidInputError):
        side.adopt()
    assert not side.path.exists()
    assert side.tables[VDA].exists()


def test_images_need_a_factory_that_knows_them(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.adopt().close()
    with Journal.open(side.path, writable=False) as journal, pytest.raises(UnsupportedError) as caught:
        journal.view(purpose="test")
    assert "qemu-nbd" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("remove_images", [False, True])
def test_delete_keeps_images_unless_asked(tmp_path: Path, remove_images: bool) -> None:
    side = Side(tmp_path)
    side.adopt().delete(remove_images=remove_images)
    assert not side.path.exists()
    assert side.images[VDA].exists() is not remove_images


def test_a_delete_that_is_refused_leaves_the_journal_open_and_usable(tmp_path: Path) -> None:
    side = Side(tmp_path)
    journal = side.adopt()
    journal.pin(Sequence(4), "a test")
    with pytest.raises(PinnedError):
        journal.delete(remove_images=True)
    assert journal.writable
    side.model.seal(journal, {VDA: [(0, b"n" * 4096)]})
    side.model.check(journal, verify=True)
    journal.unpin("a test")
    journal.delete(remove_images=True)
    assert not side.path.exists()
    assert not side.images[VDA].exists()


@pytest.mark.every_step
@pytest.mark.fault
@pytest.mark.parametrize("remove_images", [False, True])
@pytest.mark.parametrize("finished_by", ["finish_deletes", "create"])
def test_a_delete_that_was_cut_anywhere_is_finished(
    tmp_path: Path, finished_by: str, remove_images: bool
) -> None:
    cut_after_the_name = 0
    step, steps = 0, 1
    with unsynced():
        while step < steps:
            place = tmp_path / str(step)
            place.mkdir()
            side = Side(place)
            journal = side.adopt()
            with power(side.path, step) as supply:
                try:
                    journal.delete(remove_images=remove_images)
                    steps = 0
                except PowerCutError:
                    steps = step + 2
            supply.close()
            journal.close()
            if side.path.exists():  # a whole journal
                assert finish_deletes(place) == 0
                with Journal.open(side.path, writable=True, open_base=open_images) as journal:
                    side.model.check(journal, verify=True)
                    journal.delete(remove_images=remove_images)
            elif finished_by == "create":
                side.model.create(side.path).delete()
            else:
                cut_after_the_name += finish_deletes(place)
                assert finish_deletes(place) == 0
            assert [image.exists() for image in side.images.values()] == [not remove_images] * 2
            assert [entry.name for entry in place.iterdir() if ".tmp-" in entry.name] == []
            step += 1
    assert step > 5
    assert cut_after_the_name > 5 or finished_by == "create"


def test_images_that_are_adopted_again_survive_the_end_of_a_cut_delete(tmp_path: Path) -> None:
    for step in itertools.count():
        side = Side(tmp_path / str(step))
        kept = {disk: table.read_bytes() for disk, table in side.tables.items()}
        journal = side.adopt()
        with power(side.path, step) as supply, pytest.raises(PowerCutError):
            journal.delete(remove_images=True)
        supply.close()
        journal.close()
        if not side.path.exists():
            break
    assert all(image.exists() for image in side.images.values())  # cut right after the rename
    for disk, table in side.tables.items():
        table.write_bytes(kept[disk])
    with side.adopt() as journal:
        side.model.check(journal, verify=True)
    assert finish_deletes(side.path.parent) == 0
