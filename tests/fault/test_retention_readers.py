"""Prune, thin and fold beside the view of a test failover, an extract and a scrub, each in a process of its own.

Nothing that is referenced vanishes, every reader's bytes are right to the end, and the space is given back when the last one
is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import PinnedError
from secondsite.journal import Journal, folding, garbage, thin
from secondsite.journal.logs import files_of
from secondsite.journal.pins import PinStore
from secondsite.model.ids import Sequence
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model
from support.power import unsynced
from support.retention_readers import HarmedError, SteppedReader, ViewServer

pytestmark = pytest.mark.fault

SIZE = 256 << 10
PIECE = 16 << 10
KEEP_TWO = Policy(retention_points=2)
NOW = START + timedelta(hours=1)
ROUNDS = 5


class Site:
    """A journal with eight points, and what must be true beside any reader."""

    def __init__(self, folder: Path) -> None:
        self.model = Model({VDA: SIZE, VDB: 22 << 10})
        self.path = folder / "j"
        self.journal = self.model.create(self.path)
        # Data and holes in turn, so that an extract goes in many steps.
        self.model.replicate_initially(
            self.journal, {VDA: [(at, b"A" * PIECE) for at in range(0, SIZE, 2 * PIECE)]}
        )
        self.model.seal(self.journal, {})
        for _ in range(7):
            self.seal()

    def seal(self) -> None:
        """Change something in every piece, at a place of this point's own, and zero a sector."""
        number = int(self.model.sequence) + 1
        fill = bytes([32 + number])
        writes = [(at + number % 16 * 1024, fill * 1024) for at in range(0, SIZE, PIECE)]
        self.model.seal(self.journal, {VDA: writes, VDB: [(number % 20 * 1024, fill * 512), (21504, 512)]})

    def contents(self, sequence: int) -> bytes:
        return self.model.contents[sequence][VDA]

    def points(self) -> list[int]:
        return [int(point.sequence) for point in self.journal.points()]

    def stored(self) -> set[str]:
        return {path.name for path in (self.path / "logs").iterdir()}

    def needed(self) -> set[str]:
        """The files that points behind the base's name."""
        return {
            file.name
            for point in self.points()[1:]
            for disk in self.journal.manifest(Sequence(point)).disks.values()
            for file in files_of(disk)
        }

    def check(self) -> None:
        """Nothing that is referenced has vanished, and every pinned point reads right for a new reader as well."""
        for pin in self.journal.pins():
            if missing := pin.files - self.stored():
                raise HarmedError(f"files that {pin.owner} reads are gone: {sorted(missing)}")
            if not pin.lasting:
                continue
            if pin.sequence not in self.points():
                raise HarmedError(f"point {pin.sequence}, which {pin.owner} holds, is gone")
            with self.journal.view(pin.sequence, purpose="check") as view:
                if view.disks[VDA].read(0, SIZE) != self.contents(pin.sequence):
                    raise HarmedError(f"point {pin.sequence}, which {pin.owner} holds, reads wrong")


def readers_beside_retention(folder: Path, short: Path) -> None:
    """The whole story. Raises HarmedError when a reader is harmed."""
    with unsynced():
        site = Site(folder)
    journal = site.journal
    journal.pin(Sequence(4), "test failover")
    journal.pin(Sequence(6), "restore")
    with ViewServer(site.path, 4, short / "view") as view:
        view.check(site.contents(4), 0, PIECE)

        # A view that does not compare lets the base move up to its point, and keeps its logs.
        done = journal.maintain(KEEP_TWO, NOW)
        view.check(site.contents(4), PIECE, PIECE)
        site.check()
        assert (done.folded_to, done.held_by) == (4, "test failover")
        assert site.stored() - site.needed(), "the view still needs logs that no point needs"

        with (
            SteppedReader("extract", site.path, sequence=6, output=folder / "out") as extract,
            SteppedReader("scrub", site.path) as scrub,
        ):
            _beside_all_three(site, view, extract, scrub)
            if extract.end() != [site.contents(6)]:
                raise HarmedError("the extract wrote something else than its point holds")
            scrub.end()
            assert min(extract.steps, scrub.steps) > ROUNDS

        journal.maintain(KEEP_TWO, NOW)
        view.check(site.contents(4))
        site.check()
        view.end()

    # The test failover outlives its server; without it nothing is held any more.
    assert journal.maintain(KEEP_TWO, NOW).held_by == "test failover"
    site.check()
    journal.unpin("test failover")
    assert journal.maintain(KEEP_TWO, NOW).folded_to == 6
    site.check()
    journal.unpin("restore")
    done = journal.maintain(KEEP_TWO, NOW)
    assert (done.folded_to, done.held_by) == (site.points()[-2], None)
    assert done.bytes_freed > 0
    assert site.stored() == site.needed(), "space was not given back"
    assert list((site.path / "pins").glob("*.json")) == []
    assert list(journal.verify()) == []
    site.model.check(journal, verify=True)
    journal.close()


def _beside_all_three(site: Site, view: ViewServer, extract: SteppedReader, scrub: SteppedReader) -> None:
    """Between any two of their reads the writer seals, thins, folds what it may and collects garbage."""
    thinned = 0
    # Once only: what a refused thinning wrote before it was refused stays until two more points were sealed.
    refused = not _thin_unless_pinned(site.journal, 6)
    site.check()
    assert refused
    for number in range(ROUNDS):
        site.seal()
        may = [point for point in site.points()[1:-2] if point != 6]
        if may:
            thinned += 1
            site.journal.thin([Sequence(may[0])])
        done = site.journal.maintain(KEEP_TWO, NOW)
        view.check(site.contents(4), (2 + number) * PIECE, PIECE)
        extract.step()
        scrub.step()
        site.check()
        assert extract.running
        assert scrub.running
        assert done.folded_to is None
        assert done.held_by in {"extract", "verify", "test failover"}
    assert thinned == ROUNDS


def test_nothing_that_is_read_vanishes_and_all_space_comes_back(tmp_path: Path, short_path: Path) -> None:
    readers_beside_retention(tmp_path, short_path)


def _no_pins(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def removing(self: PinStore) -> Iterator[list[Any]]:
        yield []

    patch.setattr(PinStore, "removing", removing)


def _fold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(folding, "blocking", lambda pins, goal: None)


def _garbage(patch: pytest.MonkeyPatch) -> None:
    collect = garbage.collect
    patch.setattr(garbage, "collect", lambda store, expected, pins: collect(store, expected, []))


def _thin(patch: pytest.MonkeyPatch) -> None:
    def merge(store: Any, group: Any, expected: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            _no_pins(inner)
            whole(store, group, expected)

    whole = thin.merge_group
    patch.setattr(thin, "merge_group", merge)


@pytest.mark.parametrize("plant", [_no_pins, _fold, _garbage, _thin], ids=lambda plant: plant.__name__)
def test_retention_that_ignores_pins_is_seen(
    tmp_path: Path,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    plant(monkeypatch)
    with pytest.raises(HarmedError):
        readers_beside_retention(tmp_path, short_path)


def test_readers_that_run_freely_beside_the_writer_are_right(tmp_path: Path, short_path: Path) -> None:
    """No turns are given: what they meet is up to the machine, what they must read is not."""
    with unsynced():
        site = Site(tmp_path)
        site.journal.pin(Sequence(3), "test failover")
        with (
            ViewServer(site.path, 3, short_path / "view") as view,
            SteppedReader("extract", site.path, sequence=3, output=tmp_path / "out", rounds=3) as extract,
            SteppedReader("scrub", site.path, rounds=3) as scrub,
        ):
            extract.free()
            scrub.free()
            for _ in range(15):
                site.seal()
                if (may := site.points()[1:-2]) and may[0] != 3:
                    _thin_unless_pinned(site.journal, may[0])
                site.journal.maintain(KEEP_TWO, NOW)
                view.check(site.contents(3))
                site.check()
            assert extract.end() == [site.contents(3)] * 3
            scrub.end()
            view.end()
        site.journal.unpin("test failover")
        site.journal.maintain(KEEP_TWO, NOW)
        assert site.stored() == site.needed()
        assert list(site.journal.verify()) == []
        site.model.check(site.journal, verify=True)
        site.journal.close()


def _thin_unless_pinned(journal: Journal, sequence: int) -> bool:
    try:
        journal.thin([Sequence(sequence)])
    except PinnedError:
        return False
    return True
