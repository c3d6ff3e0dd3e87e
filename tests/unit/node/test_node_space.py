"""What a node says of its journals' space: how much, how long it lasts, what is not folded; and what waits at a source."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secondsite.errors import CorruptError
from secondsite.journal import PointInfo
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, Sequence
from secondsite.model.manifest import Consistency, PointKind
from secondsite.model.policy import Policy
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.source.hops import hops
from secondsite.node.target.space import Growth, Space, to_fold

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ITEM = ItemId("0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f")
POLICY = Policy(retention_hours=1.0)


def point(sequence: int, minutes_ago: float, stored: int = 100) -> PointInfo:
    fields = {
        "sequence": Sequence(sequence),
        "epoch": Epoch(1),
        "time": NOW - timedelta(minutes=minutes_ago),
        "consistency": Consistency.CRASH,
        "kind": PointKind.DELTA,
        "digest": Digest(f"{sequence:064x}"),
        "changed": 50,
        "stored": stored,
    }
    return PointInfo(**fields)  # type: ignore[arg-type]


@dataclass
class Tape:
    """Time that a test turns."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class OneJournal:
    """The journals of a node that keeps one; `broken` when it cannot be opened."""

    path: Path
    held: list[PointInfo] = field(default_factory=list)
    broken: bool = False

    def exists(self, item: ItemId) -> bool:
        return item == ITEM

    def get(self, item: ItemId) -> OneJournal:
        if self.broken:
            raise CorruptError("torn")
        return self

    def points(self) -> list[PointInfo]:
        return self.held


@pytest.fixture
def items(tmp_path: Path) -> ItemStore:
    store = ItemStore(tmp_path / "items")
    store.put(ItemRecord(ITEM, "web", Epoch(1), Role.TARGET, "00" * 32, POLICY, (DiskKey("vda"),)))
    return store


def test_growth_is_told_after_ten_minutes_and_over_six_hours_at_most() -> None:
    tape = Tape()
    growth = Growth(tape)
    growth.note(1000)
    tape.now = 599
    assert growth.rate(9000) is None
    tape.now = 600
    growth.note(7000)
    assert growth.rate(7000) == 10.0
    for minute in range(11, 8 * 60):
        tape.now = minute * 60
        growth.note(7000)
    assert growth.rate(7000) == 0.0


def test_the_runway_is_the_free_space_over_its_growth(items: ItemStore, tmp_path: Path) -> None:
    tape = Tape()
    journal = OneJournal(tmp_path, [point(1, 1)])
    space = Space(items, journal, tmp_path, lambda: NOW, tape)  # type: ignore[arg-type]
    assert space.find(ITEM) is None
    space.measure()
    first = space.find(ITEM)
    assert first is not None
    assert first["runway_s"] is None
    assert 0 < first["free"] <= first["total"]
    # An hour ago a thousandth of what is free was not yet used.
    space._growth._samples[0] = (-3600.0, space._growth._samples[0][1] - first["free"] // 1000)
    space.measure()
    found = space.find(ITEM)
    assert found is not None
    assert found["runway_s"] == pytest.approx(3600 * 1000, rel=0.2)


def test_a_journal_tells_its_bytes_its_points_and_what_is_not_folded(
    items: ItemStore, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    with (tmp_path / "base" / "vda.raw").open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"x" * 4096)
    tape = Tape()
    journal = OneJournal(tmp_path, [point(1, 90), point(2, 80, 300), point(3, 59), point(4, 1)])
    space = Space(items, journal, tmp_path, lambda: NOW, tape)  # type: ignore[arg-type]
    space.measure()
    found = space.find(ITEM)
    assert found is not None
    assert 600 + 4096 <= found["bytes"] < 1 << 20
    assert found["points"] == 4
    assert found["to_fold"] == {"points": 2, "bytes": 400, "eta_s": None}
    tape.now = 30
    journal.held = journal.held[1:]
    space.measure()
    later = space.find(ITEM)
    assert later is not None
    assert later["to_fold"] == {"points": 1, "bytes": 100, "eta_s": 10.0}


def test_a_journal_that_cannot_be_read_is_left_out(items: ItemStore, tmp_path: Path) -> None:
    space = Space(items, OneJournal(tmp_path, broken=True), tmp_path, lambda: NOW)  # type: ignore[arg-type]
    space.measure()
    assert space.find(ITEM) is None


def test_a_journal_that_cannot_even_be_looked_for_leaves_the_others_measured(
    items: ItemStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ItemId("1b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f")
    items.put(ItemRecord(lost, "mail", Epoch(1), Role.TARGET, "00" * 32, POLICY, (DiskKey("vda"),)))

    def exists(_journals: OneJournal, item: ItemId) -> bool:
        if item == lost:
            raise OSError(116, "Stale file handle")
        return True

    monkeypatch.setattr(OneJournal, "exists", exists)
    space = Space(items, OneJournal(tmp_path), tmp_path, lambda: NOW)  # type: ignore[arg-type]
    space.measure()
    assert space.find(ITEM) is not None
    assert space.find(lost) is None


def test_a_spool_that_cannot_be_read_keeps_no_report_back(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"no folder")
    progress = {"bytes": 1000, "total_bytes": 1500, "rate": 100, "eta_s": 5.0}
    assert hops(progress, tmp_path / "spool") == {
        "source": {"bytes": 500, "eta_s": 5.0},
        "link": {"rate": 100},
    }


def test_only_what_the_policy_gives_up_waits_to_be_folded() -> None:
    points = [point(1, 59), point(2, 30), point(3, 1)]
    assert to_fold(points, POLICY, NOW) == []
    assert to_fold([], POLICY, NOW) == []


def test_what_waits_at_the_source_is_to_be_read_or_spooled(tmp_path: Path) -> None:
    assert hops(None, tmp_path) is None
    (tmp_path / "a.hrl").write_bytes(b"x" * 500)
    progress = {"bytes": 1000, "total_bytes": 1500, "rate": 100, "eta_s": 5.0}
    assert hops(progress, tmp_path) == {"source": {"bytes": 1000, "eta_s": 10.0}, "link": {"rate": 100}}
    idle = {"bytes": 0, "total_bytes": None, "rate": 0, "eta_s": None}
    assert hops(idle, tmp_path / "none") == {"source": {"bytes": 0, "eta_s": None}, "link": {"rate": 0}}
