"""Every retained point equals the model's disks at that point, after any history. This outranks all other tests."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from secondsite.blocks import DigestTable, block_digests
from secondsite.errors import PinnedError
from secondsite.journal import Journal, View
from secondsite.model.ids import DiskKey, Epoch, Sequence
from secondsite.model.policy import Policy
from secondsite.model.retention import POINTS_MIN, PointAge, points_to_keep
from support.journals import KEY, START, VDA, VDB, Model
from support.power import unsynced

SIZES = {VDA: 40 << 10, VDB: (12 << 10) + 1536}
SECTOR = 512


@st.composite
def changes(draw: st.DrawFn) -> dict[DiskKey, list[tuple[int, bytes | int]]]:
    """Disjoint writes and zeros on both disks, in sectors or in whole blocks, as different sources make them."""
    result: dict[DiskKey, list[tuple[int, bytes | int]]] = {}
    for disk, size in SIZES.items():
        unit = draw(st.sampled_from([SECTOR, 4096]))
        cuts = sorted(draw(st.sets(st.integers(0, size // unit), max_size=6)))
        writes: list[tuple[int, bytes | int]] = []
        for start, end in zip(cuts[::2], cuts[1::2], strict=False):
            length = (end - start) * unit
            fill = draw(st.integers(0, 255))
            # fill 0 as data is allowed: a log may hold zeros
            writes.append((start * unit, length if draw(st.booleans()) else bytes([fill]) * length))
        if writes:
            result[disk] = writes
    return result


class History(RuleBasedStateMachine):
    """A source, a journal, and readers that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="journal-"))
        self.sync = unsynced()
        self.sync.__enter__()
        self.model = Model(SIZES)
        self.journal = self.model.create(self.folder / "j")
        self.views: list[View] = []
        self.pinned: set[int] = set()
        self.prepared: set[int] = set()
        self.retained: list[int] = []

    def teardown(self) -> None:
        for view in self.views:
            view.close()
        self.journal.close()
        self.sync.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    @initialize(first=st.lists(changes(), max_size=3))
    def replicate_initially(self, first: list[dict[DiskKey, list[tuple[int, bytes | int]]]]) -> None:
        for change in first:
            self.model.replicate_initially(self.journal, change)
        self.seal({})

    @rule(change=changes())
    def seal(self, change: dict[DiskKey, list[tuple[int, bytes | int]]]) -> None:
        self.retained.append(self.model.seal(self.journal, change, time=self.next_time()))

    def next_time(self) -> datetime:
        return START + timedelta(minutes=25) * (self.model.sequence + 1)

    @precondition(lambda self: sum(self.model.sizes.values()) < 512 << 10)
    @rule(
        disk=st.sampled_from(sorted(SIZES)),
        sectors=st.integers(1, 60),
        written=st.integers(0, 255),
        keeping=st.booleans(),
    )
    def grow(self, disk: DiskKey, sectors: int, written: int, keeping: bool) -> None:
        """A disk grows, with or without data behind its old end; older points keep their size."""
        old = self.model.sizes[disk]
        self.model.sizes[disk] = old + sectors * SECTOR
        self.model.disks[disk].extend(bytes(sectors * SECTOR))
        tail = [] if keeping else [(old + (sectors // 2) * SECTOR, bytes([written]) * SECTOR)]
        self.retained.append(
            self.model.seal(self.journal, {disk: tail} if tail else {}, time=self.next_time())
        )

    @rule(keep=st.integers(POINTS_MIN, 6))
    def fold(self, keep: int) -> None:
        limit = min([*self.pinned, *(view.sequence for view in self.views)], default=self.model.sequence)
        done = self.journal.maintain(Policy(retention_points=keep), START + timedelta(hours=1))
        due = self.retained[max(0, len(self.retained) - keep)]
        self.retained = [sequence for sequence in self.retained if sequence >= min(due, limit)]
        assert (done.held_by is not None) == (limit < due)

    @rule(every=st.floats(0.1, 2), hourly=st.floats(0, 2), daily=st.floats(0, 8))
    def climb(self, every: float, hourly: float, daily: float) -> None:
        """A ladder: what it gives up goes, but for what is in use and what the fold has to leave for that."""
        policy = Policy(
            retention_hours=every + hourly + daily,
            keep_all_hours=every,
            keep_hourly_hours=every + hourly,
        )
        points = self.journal.points()
        kept = points_to_keep(
            [PointAge(point.sequence, point.time) for point in points], policy, points[-1].time
        )
        in_use = self.pinned | {view.sequence for view in self.views}
        self.journal.maintain(policy, points[-1].time)
        floor = min([kept[0], *in_use])
        self.retained = [
            sequence
            for sequence in self.retained
            if sequence in kept or sequence in in_use or floor <= sequence < kept[0]
        ]

    @precondition(lambda self: len(self.retained) > 3)
    @rule(data=st.data())
    def thin(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from(self.retained[1:-2]), min_size=1))
        in_use = self.pinned | {view.sequence for view in self.views}
        try:
            self.journal.thin([Sequence(sequence) for sequence in gone])
        except PinnedError:
            assert gone & in_use
            left = {point.sequence for point in self.journal.points()}
            assert left >= in_use
            self.retained = [
                sequence for sequence in self.retained if sequence in left or sequence not in gone
            ]
        else:
            assert not gone & in_use
            self.retained = [sequence for sequence in self.retained if sequence not in gone]

    @rule(data=st.data())
    def open_view(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.retained))
        with Journal.open(self.folder / "j", writable=False) as reader:
            self.views.append(reader.view(Sequence(sequence), purpose="test"))

    @rule(data=st.data())
    def prepare(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.retained))
        self.journal.prepare_view(Sequence(sequence), self.folder / f"prepared-{sequence}")
        self.prepared.add(sequence)

    @precondition(lambda self: self.prepared.intersection(self.retained))
    @rule(data=st.data())
    def open_prepared_view(self, data: st.DataObject) -> None:
        """Whatever was folded, thinned, sealed or grown since it was prepared."""
        sequence = data.draw(st.sampled_from(sorted(self.prepared.intersection(self.retained))))
        path = self.folder / f"prepared-{sequence}"
        with Journal.open(self.folder / "j", writable=False) as reader:
            self.views.append(reader.view(Sequence(sequence), purpose="test", prepared=path))

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def close_view(self, data: st.DataObject) -> None:
        self.views.pop(data.draw(st.integers(0, len(self.views) - 1))).close()

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.retained))
        self.journal.pin(Sequence(sequence), f"owner of {sequence}")
        self.pinned.add(sequence)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.pinned)))
        self.journal.unpin(f"owner of {sequence}")
        self.pinned.discard(sequence)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal.open(self.folder / "j", writable=True)

    @rule()
    def raise_epoch(self) -> None:
        self.model.epoch = Epoch(self.model.epoch + 1)
        self.journal.raise_epoch(self.model.epoch)

    @rule(data=st.data())
    def compare_a_table(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.retained))
        disk = data.draw(st.sampled_from(sorted(SIZES)))
        path = self.folder / "asked.tbl"
        with self.journal.view(Sequence(sequence), purpose="digests") as view:
            self.journal.digests_at(view, disk, path)
        with DigestTable.open(path, KEY) as table:
            expected = block_digests(self.model.contents[sequence][disk], KEY)
            assert table.get(0, len(table)).tolist() == expected.tolist()
        path.unlink()

    @rule()
    def scrub(self) -> None:
        assert list(self.journal.verify()) == []

    @invariant()
    def every_retained_point_reads_back(self) -> None:
        assert [point.sequence for point in self.journal.points()] == self.retained
        for sequence in self.retained:
            with self.journal.view(Sequence(sequence), purpose="test", verify=True) as view:
                self.compare(view)

    @invariant()
    def every_open_view_reads_its_point(self) -> None:
        for view in self.views:
            self.compare(view)

    def compare(self, view: View) -> None:
        for disk, expected in self.model.contents[view.sequence].items():
            assert view.disks[disk].size == len(expected)
            assert view.disks[disk].read(0, len(expected)) == expected
            for extent in view.disks[disk].extents(0, len(expected)):
                if extent.zero:
                    assert not any(expected[extent.offset : extent.offset + extent.length])


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
