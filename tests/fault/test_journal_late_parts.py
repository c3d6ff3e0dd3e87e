"""Requests of an initial replication that arrive late: the first point holds what the source's disks held, or there is none."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.blocks import UNKNOWN, DigestTable, block_digests
from secondsite.errors import ConflictError, OperationRefusedError, OutOfSequenceError, Retry
from secondsite.journal import Journal, table_label
from secondsite.model.ids import Digest
from secondsite.model.manifest import Manifest
from support.journals import KEY, VDA, VDB, Model, log_bytes
from support.power import PowerCutError, power, unsynced

pytestmark = pytest.mark.fault
BLOCK = 4096
BLOCKS = 6
SIZES = {VDA: BLOCKS * BLOCK, VDB: BLOCK}
EVERYTHING = range(BLOCKS)


class Source:
    """Ships by its table as a node does: what is not known to have arrived is unknown, and is shipped again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = Model(SIZES)
        self.journal = self.model.create(folder / "j")
        self.tables = {
            disk: DigestTable.create(folder / f"{disk}.tbl", size, KEY) for disk, size in SIZES.items()
        }
        self.late: list[list[Digest]] = []
        self.shipped = 0

    def close(self) -> None:
        self.journal.close()
        for table in self.tables.values():
            table.close()

    def write(self, block: int, value: int) -> None:
        self.model.write(VDA, (block * BLOCK, bytes([value]) * BLOCK))

    def ship(self, blocks: Sequence[int] = EVERYTHING, *, answered: bool = True) -> None:
        """Compare and send what differs. Not answered: the request waits somewhere, and the source has given it up."""
        table = self.tables[VDA]
        found = block_digests(bytes(self.model.disks[VDA]), KEY)
        differ = [block for block in blocks if found[block] != table.get(block, 1)[0]]
        if not differ:
            return
        self.model.unique += 1
        writes = [(at * BLOCK, bytes(self.model.disks[VDA][at * BLOCK : (at + 1) * BLOCK])) for at in differ]
        part = log_bytes(SIZES[VDA], writes, unique=self.model.unique)
        digests = self.model.send(self.journal, [("hrl", part)])
        if answered:
            self.journal.apply_initial(self.model.epoch, VDA, digests)
            table.put(np.array(differ), found[differ])
            self.shipped += len(differ)
        else:
            self.late.append(digests)
            for block in differ:
                table.mark_unknown(block, 1)

    def arrive(self) -> None:
        """The oldest request that was given up reaches the journal."""
        self.journal.apply_initial(self.model.epoch, VDA, self.late.pop(0))

    def manifest(self) -> Manifest:
        labels = {table_label(disk): table.fingerprint() for disk, table in self.tables.items()}
        return dataclasses.replace(self.model.manifest({}), labels=labels)

    def seal(self) -> None:
        manifest = self.manifest()
        self.model.sealed(manifest, self.journal.seal(self.model.epoch, manifest.to_bytes()))

    def relearn(self) -> None:
        path = self.folder / "learned"
        self.journal.initial_table(VDA, path)
        with DigestTable.open(path, KEY) as learned:
            self.tables[VDA].put(0, learned.get(0, BLOCKS))
        path.unlink()


@pytest.fixture
def source(tmp_path: Path):
    with unsynced():
        source = Source(tmp_path)
        yield source
        source.close()


def test_a_part_that_arrives_late_over_newer_data_is_caught_at_the_first_seal(source: Source) -> None:
    for block in EVERYTHING:
        source.write(block, 1)
    source.ship(answered=False)
    source.write(2, 2)
    source.ship()
    source.arrive()
    with pytest.raises(OutOfSequenceError, match="not what the source believes") as caught:
        source.seal()
    assert caught.value.retry is Retry.COMPARE
    assert caught.value.hint
    assert source.journal.status().state == "initial"
    source.relearn()
    source.shipped = 0
    source.ship()
    assert source.shipped == 1  # no hidden full copy
    source.seal()
    source.model.check(source.journal, verify=True)
    assert list(source.journal.verify()) == []


def test_a_part_that_arrives_late_without_harm_does_not_hold_up_the_first_seal(source: Source) -> None:
    source.write(0, 1)
    source.ship(answered=False)
    source.ship()
    source.arrive()
    source.seal()
    source.model.check(source.journal, verify=True)


def test_the_first_point_of_a_source_that_says_nothing_of_its_tables_is_taken(source: Source) -> None:
    source.write(0, 1)
    source.ship()
    manifest = source.model.manifest({})
    source.model.sealed(manifest, source.journal.seal(source.model.epoch, manifest.to_bytes()))
    source.model.check(source.journal, verify=True)


def test_a_part_that_arrives_after_the_first_point_changes_nothing(source: Source) -> None:
    source.write(0, 1)
    source.ship(answered=False)
    source.write(0, 2)
    source.ship()
    source.seal()
    with pytest.raises(OperationRefusedError):
        source.arrive()
    source.model.check(source.journal, verify=True)


def test_the_initial_table_is_there_until_the_first_point_and_replaces_nothing(
    source: Source, tmp_path: Path
) -> None:
    source.write(3, 1)
    source.ship()
    source.journal.initial_table(VDA, tmp_path / "first")
    with DigestTable.open(tmp_path / "first", KEY) as table:
        assert list(table.nonzero_ranges()) == [(3, 1)]
        assert table.fingerprint() == source.tables[VDA].fingerprint()
    with pytest.raises(ConflictError):
        source.journal.initial_table(VDA, tmp_path / "first")
    source.seal()
    with pytest.raises(OperationRefusedError):
        source.journal.initial_table(VDA, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_what_a_cut_left_half_written_is_learned_as_unknown_and_shipped_again(tmp_path: Path) -> None:
    found_unknown = False
    step, steps = 0, 1
    with unsynced():
        while step < steps:
            folder = tmp_path / str(step)
            folder.mkdir()
            source = Source(folder)
            source.write(1, 1)
            with power(folder / "j", step) as supply:
                try:
                    source.ship()
                    steps = 0
                except PowerCutError:
                    steps = step + 2
            supply.close()
            source.journal.close()
            source.journal = Journal.open(folder / "j", writable=True)
            source.relearn()
            found_unknown |= source.tables[VDA].get(1, 1)[0] == UNKNOWN
            source.ship()
            source.seal()
            source.model.check(source.journal, verify=True)
            source.close()
            step += 1
    assert found_unknown
    assert step > 10


_blocks = st.integers(0, BLOCKS - 1)
_steps = st.one_of(
    st.tuples(st.just("write"), _blocks, st.integers(0, 3)),
    st.tuples(st.just("ship"), _blocks, st.integers(1, BLOCKS)),
    st.tuples(st.just("give up"), _blocks, st.integers(1, BLOCKS)),
    st.tuples(st.just("arrive"), st.just(0), st.just(0)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_steps, max_size=14), st.integers(0, 3))
def test_whatever_arrives_when_the_first_point_is_the_source(
    steps: list[tuple[str, int, int]], between: int
) -> None:
    with ExitStack() as stack:
        stack.enter_context(unsynced())
        source = Source(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.callback(source.close)
        for what, block, value in steps:
            if what == "write":
                source.write(block, value)
            elif what == "arrive":
                if source.late:
                    source.arrive()
            else:
                source.ship(range(block, min(BLOCKS, block + value)), answered=what == "ship")
        source.ship()
        for _ in range(between):  # between the last part and the seal, where nothing else would notice
            if source.late:
                source.arrive()
        try:
            source.seal()
        except OutOfSequenceError:
            source.relearn()
            source.ship()
            source.seal()
        source.model.check(source.journal, verify=True)
        assert list(source.journal.verify()) == []
