"""A prepared view: the same as an ordinary one as long as it holds, and passed over when it does not."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.errors import CorruptError, NotFoundError
from secondsite.journal import Journal, View
from secondsite.journal import prepared as module
from secondsite.journal.prepared import Prepared
from secondsite.model.ids import Sequence
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model

LAST = Sequence(8)


class Site:
    """A journal of eight points, and its model."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "j"
        self.file = folder / "prepared"
        self.model = Model()
        self.journal = self.model.create(self.path)
        self.model.replicate_initially(self.journal, {VDA: [(0, b"a" * 8192)]})
        self.model.seal(self.journal, {})
        for number in range(1, LAST):
            writes = {VDA: [(number * 4096, bytes([number]) * 8192)], VDB: [(number * 512, 512)]}
            self.model.seal(self.journal, writes)

    def open(self, sequence: Sequence = LAST) -> View:
        with Journal.open(self.path, writable=False) as reader:
            return reader.view(sequence, purpose="test", prepared=self.file)

    def reads_right(self, sequence: Sequence = LAST) -> bool:
        with self.open(sequence) as view:
            contents = self.model.contents[sequence]
            return all(view.disks[disk].read(0, len(data)) == data for disk, data in contents.items())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site(tmp_path)
    monkeypatch.setattr(module.Prepared, "take", _counted(Prepared.take))
    TAKEN.clear()
    return found


TAKEN: list[bool] = []


def _counted(take):  # type: ignore[no-untyped-def]
    def counted(*arguments):  # type: ignore[no-untyped-def]
        found = take(*arguments)
        TAKEN.append(found is not None)
        return found

    return counted


def test_a_prepared_point_reads_as_it_was(site: Site) -> None:
    site.journal.prepare_view(LAST, site.file)
    assert site.reads_right()
    assert TAKEN == [True]


def test_a_prepared_view_pins_its_files_until_it_is_closed(site: Site) -> None:
    site.journal.prepare_view(LAST, site.file)
    with site.open() as view:
        (pin,) = site.journal.pins()
        assert (pin.sequence, pin.lasting) == (LAST, False)
        named = {file.name for disk in Prepared.load(site.file).disks.values() for file in disk.files}  # type: ignore[union-attr]
        assert pin.files == named
        assert len(named) == 14
        site.journal.thin([Sequence(number) for number in range(2, 7)])
        assert view.disks[VDA].read(0, len(site.model.contents[LAST][VDA])) == site.model.contents[LAST][VDA]
    assert site.journal.pins() == []


def test_it_holds_while_the_base_moves_up_to_the_point(site: Site) -> None:
    site.journal.prepare_view(LAST, site.file)
    keeper = site.open()
    site.journal.maintain(Policy(retention_points=4), START + timedelta(hours=1))
    assert site.journal.status().base == LAST - 3
    assert site.reads_right()
    assert TAKEN == [True, True]
    keeper.close()


def test_it_is_passed_over_once_its_files_were_merged(site: Site) -> None:
    site.journal.prepare_view(LAST, site.file)
    site.journal.thin([Sequence(number) for number in range(2, 7)])
    for _ in range(3):  # what was received stays until two points were sealed after it
        site.model.seal(site.journal, {VDA: [(0, b"z" * 512)]})
    site.journal.maintain(Policy(retention_points=1000), START)
    assert site.reads_right()
    assert TAKEN == [False]


def test_it_is_passed_over_when_the_base_is_beyond_the_point(site: Site) -> None:
    early = Sequence(3)
    site.journal.prepare_view(early, site.file)
    site.journal.maintain(Policy(retention_points=4), START + timedelta(hours=1))
    with pytest.raises(NotFoundError):
        site.open(early)
    assert TAKEN == [False]


def test_one_of_another_point_is_passed_over(site: Site) -> None:
    site.journal.prepare_view(Sequence(7), site.file)
    assert site.reads_right()
    assert TAKEN == [False]


@pytest.mark.parametrize("cut", [0, 10, 300, -1])
def test_a_torn_one_is_passed_over(site: Site, cut: int) -> None:
    site.journal.prepare_view(LAST, site.file)
    site.file.write_bytes(site.file.read_bytes()[:cut])
    assert site.reads_right()
    assert TAKEN == []


def test_each_flipped_bit_is_noticed(site: Site) -> None:
    site.journal.prepare_view(LAST, site.file)
    data = site.file.read_bytes()
    for at in range(0, len(data), 7):
        site.file.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert Prepared.load(site.file) is None


def test_a_log_that_is_gone_is_told_as_ever(site: Site) -> None:
    site.journal.prepare_view(LAST, site.file)
    next(path for path in (site.path / "logs").iterdir() if path.suffix == ".hrl").unlink()
    with pytest.raises(CorruptError, match="is missing"):
        site.open()
    assert TAKEN == [False]


def test_there_is_none_of_a_point_that_there_is_not(site: Site) -> None:
    with pytest.raises(NotFoundError):
        site.journal.prepare_view(Sequence(99), site.file)
    assert not site.file.exists()


def test_comparing_with_digests_does_not_rely_on_it(site: Site) -> None:
    site.journal.prepare_view(LAST, site.file)
    with (
        Journal.open(site.path, writable=False) as reader,
        reader.view(LAST, purpose="test", verify=True, prepared=site.file) as view,
    ):
        assert view.disks[VDA].read(0, 4096) == site.model.contents[LAST][VDA][:4096]
    assert TAKEN == []
