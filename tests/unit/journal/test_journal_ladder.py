"""Retention as a ladder on a real journal: the points between are merged, and every kept one reads back right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.errors import CorruptError
from secondsite.journal import Journal
from secondsite.model.manifest import PointKind
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model
from support.power import unsynced

LADDER = Policy(retention_hours=50, keep_all_hours=2, keep_hourly_hours=10)
STEP = timedelta(minutes=20)


@pytest.fixture(autouse=True)
def _without_sync() -> Iterator[None]:
    with unsynced():
        yield


class Site:
    """A source that writes at random and seals a point each 20 minutes, and a journal with a ladder."""

    def __init__(self, folder: Path) -> None:
        self.random = random.Random(3)
        self.model = Model()
        self.journal = self.model.create(folder / "j")
        self.now = START
        self.model.replicate_initially(self.journal, {VDA: [(0, b"A" * 16384)]})
        self.seal()

    def seal(self) -> None:
        self.now += STEP
        changes = {}
        for disk in (VDA, VDB):
            size = self.model.sizes[disk]
            offset = self.random.randrange(0, size // 512) * 512
            length = min(size - offset, 512 * self.random.randrange(1, 12))
            data = length if self.random.random() < 0.3 else bytes([self.random.randrange(1, 256)]) * length
            changes[disk] = [(offset, data)]
        self.model.seal(self.journal, changes, time=self.now)

    def ages_h(self) -> list[float]:
        return [(self.now - point.time) / timedelta(hours=1) for point in self.journal.points()]


def test_every_kept_point_reads_back_right_while_the_ladder_thins_for_days(tmp_path: Path) -> None:
    site = Site(tmp_path)
    thinned = removed = 0
    for step in range(1, 3 * 62):
        site.seal()
        if step % 4 == 0:
            done = site.journal.maintain(LADDER, site.now)
            thinned += done.points_thinned
            removed += done.points_removed
        if step % 45 == 0:
            site.model.check(site.journal)
    site.journal.maintain(LADDER, site.now)
    site.model.check(site.journal, verify=True)
    assert list(site.journal.verify()) == []
    ages = site.ages_h()
    assert max(ages) <= 50
    assert [age for age in ages if age < 2] == pytest.approx([5 / 3, 4 / 3, 1, 2 / 3, 1 / 3, 0])
    assert len([age for age in ages if 3 <= age < 10]) == 7
    assert len(ages) < 9 + 10 + 24 + 3
    assert thinned > 100
    assert removed > 0
    files = {path.name for path in (site.journal.path / "logs").iterdir()}
    named = {
        f"{file.digest}"
        for point in site.journal.points()[1:]
        for disk in site.journal.manifest(point.sequence).disks.values()
        for file in (*disk.logs, *([disk.zeros] if disk.zeros else []))
    }
    assert {name.split(".")[0] for name in files} == named  # what was merged away is unlinked


def test_a_second_call_finds_nothing_to_thin(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(30):
        site.seal()
    assert site.journal.maintain(LADDER, site.now).points_thinned > 0
    before = [point.digest for point in site.journal.points()]
    assert site.journal.maintain(LADDER, site.now).points_thinned == 0
    assert [point.digest for point in site.journal.points()] == before


def test_without_a_ladder_nothing_is_thinned(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(30):
        site.seal()
    assert site.journal.maintain(Policy(retention_hours=72), site.now).points_thinned == 0
    assert len(site.journal.points()) == 31


def test_pinned_points_and_what_a_reader_holds_stay(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(30):
        site.seal()
    site.journal.pin(5, "failover")
    with site.journal.view(10, purpose="test") as view:
        site.journal.maintain(LADDER, site.now)
        sequences = [point.sequence for point in site.journal.points()]
        assert 5 in sequences
        assert 10 in sequences
        assert 4 not in sequences  # merged into 5: a pin holds its own point, not its neighbours
        assert 7 not in sequences
        for disk, expected in site.model.contents[10].items():
            assert view.disks[disk].read(0, view.disks[disk].size) == expected
    site.journal.unpin("failover")
    site.journal.maintain(LADDER, site.now)
    sequences = [point.sequence for point in site.journal.points()]
    assert 5 not in sequences
    assert 10 not in sequences
    site.model.check(site.journal, verify=True)


def test_points_that_are_sealed_while_it_works_stay(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(3 * 56):
        site.seal()
    known = len(site.model.contents)

    def seal_meanwhile(_done: int) -> None:
        while len(site.model.contents) < known + 5:
            site.seal()

    done = site.journal.maintain(LADDER, site.now, seal_meanwhile)
    assert done.folded_to is not None  # it has called back
    assert done.points_thinned > 0
    new = list(site.model.contents)[-5:]
    assert [point.sequence for point in site.journal.points()][-5:] == new
    site.model.check(site.journal)


def test_a_fold_that_is_held_up_does_not_hold_up_the_thinning(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.journal.pin(1, "failover")
    for _ in range(3 * 56):
        site.seal()
    done = site.journal.maintain(LADDER, site.now)
    assert (done.folded_to, done.held_by) == (None, "failover")
    assert done.points_thinned > 0
    assert [point.sequence for point in site.journal.points()][:3] == [1, 2, 3]  # they go with the fold
    site.model.check(site.journal)


def test_a_damaged_run_stays_and_the_others_are_merged(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(30):
        site.seal()
    log = next(
        ref for disk in site.journal.manifest(5).disks.values() for ref in disk.logs
    )  # of the second hour
    path = site.journal.path / "logs" / f"{log.digest}.hrl"
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        site.journal.maintain(LADDER, site.now)
    sequences = [point.sequence for point in site.journal.points()]
    assert 5 in sequences
    assert 11 not in sequences
    assert site.journal.manifest(12).kind is PointKind.MERGED


def test_a_thinning_that_was_cut_is_finished_by_the_next_writer(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(30):
        site.seal()
    path = site.journal.path
    doomed = (path / "points" / f"{5:016d}.point").read_bytes()
    site.journal.maintain(LADDER, site.now)
    site.journal.close()
    (path / "points" / f"{5:016d}.point").write_bytes(doomed)  # as if its unlink had not come about
    with Journal.open(path, writable=True) as journal:
        assert 5 not in [point.sequence for point in journal.points()]
        site.model.check(journal, verify=True)


def test_points_from_before_a_disk_grew_are_merged_as_well(tmp_path: Path) -> None:
    """Twice grown: the size between is that of no disk of now. Merging raised that the log was none of the item's."""
    site = Site(tmp_path)
    for number in range(30):
        if number in {7, 10}:
            for disk in (VDA, VDB):
                site.model.sizes[disk] += 4096
                site.model.disks[disk].extend(bytes(4096))
        site.seal()
    assert site.journal.maintain(LADDER, site.now).points_thinned > 10
    site.model.check(site.journal, verify=True)
    assert list(site.journal.verify()) == []
