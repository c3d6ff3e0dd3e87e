"""Parts: what is shipped brings the old image to the new one, and nothing is shipped that need not be."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.blocks import UNKNOWN, DigestTable, block_digests
from secondsite.capture.parts import Mode, Part, SpoolBudget, produce
from secondsite.capture.port import CancelledError, Extent, pieces
from secondsite.errors import ConflictError, InvalidInputError, UnavailableError
from secondsite.hrl.reader import Log, read_log
from secondsite.hrl.zeros import decode_zeros
from secondsite.model.ids import DiskKey
from secondsite.model.units import BLOCK, KIB, MIB

KEY = b"k" * 32
VDA = DiskKey("vda")
TIME = datetime(2026, 11, 23, 5, tzinfo=UTC)


@dataclass
class ImageDisk:
    """A snapshot's disk over bytes; `named` are the extents it says changed."""

    content: bytes
    named: list[Extent]
    whole: bool = False
    read_bytes: int = 0
    fail_at_end: Exception | None = None
    on_read: Callable[[], None] = field(default=lambda: None)

    @property
    def size(self) -> int:
        return len(self.content)

    def changed(self) -> Iterator[Extent]:
        return iter(self.named)

    def read(self, extents: Iterable[tuple[int, int]]) -> Generator[tuple[int, memoryview], None, None]:
        scratch = bytearray(MIB)
        for offset, length in pieces(extents):
            self.on_read()
            self.read_bytes += length
            scratch[:length] = self.content[
                offset : offset + length
            ]  # reused: a kept view would show other bytes
            yield offset, memoryview(scratch)[:length]
        if self.fail_at_end is not None:
            raise self.fail_at_end


def table_of(path: Path, content: bytes) -> DigestTable:
    table = DigestTable.create(path / f"{uuid.uuid4().hex}.tbl", len(content), KEY)
    table.put(0, block_digests(content, KEY))
    return table


def run(disk: ImageDisk, table: DigestTable, mode: Mode, spool: Path, **more: object) -> list[Part]:
    return list(produce(disk, VDA, table, mode, spool, digest_key=KEY, time=TIME, **more))  # type: ignore[arg-type]


def applied(content: bytes, parts: Iterable[Part]) -> bytes:
    """Apply parts as the journal does, and check that they don't overlap."""
    image = bytearray(content)
    touched = np.zeros(-(-len(content) // 512), bool)
    for part in parts:
        data = part.path.read_bytes()
        assert blake3(data).hexdigest() == part.digest
        assert len(data) == part.length
        if part.kind == "zeros":
            ranges = [(int(o), int(n), b"\0" * int(n)) for o, n in decode_zeros(data)]
        else:
            entries = log_of(data).entries
            ranges = [
                (int(o), int(n), data[int(at) : int(at) + int(n)])
                for o, n, at in zip(entries.offset, entries.length, entries.location, strict=True)
            ]
        for offset, length, piece in ranges:
            sectors = touched[offset // 512 : -(-(offset + length) // 512)]
            assert not sectors.any()
            sectors[:] = True
            image[offset : offset + length] = piece
        assert part.data_length == sum(length for _, length, _ in ranges)
    return bytes(image)


def log_of(data: bytes) -> Log:
    return read_log(lambda offset, length: data[offset : offset + length], len(data))


def advanced(table: DigestTable, parts: Iterable[Part]) -> np.ndarray:
    for part in parts:
        part.pending.apply(table)
    return table.get(0, len(table))


# -- the law ---------------------------------------------------------------------------------------------

block_kinds = st.sampled_from(["zero", "same", "new", "cleared"])


@st.composite
def histories(draw: st.DrawFn) -> tuple[bytes, bytes, list[bool], list[bool]]:
    """Old image, new image, which blocks the table does not know, and which sectors the snapshot names."""
    blocks = draw(st.integers(1, 40))
    tail = draw(st.sampled_from([0, 512, 3584]))
    size = blocks * BLOCK + tail
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    old = bytearray(size)
    new = bytearray(size)
    count = -(-size // BLOCK)
    for block in range(count):
        start, end = block * BLOCK, min(size, (block + 1) * BLOCK)
        kind = draw(block_kinds)
        first, second = rng.bytes(end - start), rng.bytes(end - start)
        old[start:end] = b"\0" * (end - start) if kind == "zero" else first
        if kind == "zero":
            new[start:end] = second if draw(st.booleans()) else b"\0" * (end - start)
        elif kind == "same":
            new[start:end] = first
        elif kind == "new":
            new[start:end] = first[:512] + second[512:] if draw(st.booleans()) else second
        # "cleared" stays zero
    unknown = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    also_named = draw(st.lists(st.booleans(), min_size=size // 512, max_size=size // 512))
    return bytes(old), bytes(new), unknown, also_named


def named_extents(old: bytes, new: bytes, also: list[bool], unknown: list[bool]) -> list[Extent]:
    """Extents over sectors: all that differ or that the table does not know, and some more; zero where `new` is."""
    extents: list[Extent] = []
    for sector, extra in enumerate(also):
        start = sector * 512
        here = new[start : start + 512]
        if extra or here != old[start : start + 512] or unknown[start // BLOCK]:
            extents.append(Extent(start, 512, not any(here)))
    return extents


@pytest.mark.parametrize("mode", list(Mode))
@settings(max_examples=120, deadline=None)
@given(history=histories(), part_blocks=st.integers(1, 9))
def test_parts_bring_the_old_image_to_the_new_one(
    tmp_path_factory: pytest.TempPathFactory,
    mode: Mode,
    history: tuple[bytes, bytes, list[bool], list[bool]],
    part_blocks: int,
) -> None:
    old, new, unknown, also = history
    folder = tmp_path_factory.mktemp("parts")
    with table_of(folder, old) as table:
        for block in np.flatnonzero(unknown).tolist():
            table.mark_unknown(block, 1)
        if mode is Mode.COMPARE:
            data = [Extent(s * 512, 512) for s in range(len(new) // 512) if any(new[s * 512 : s * 512 + 512])]
            disk = ImageDisk(new, data, whole=True)
        else:
            disk = ImageDisk(new, named_extents(old, new, also, unknown))
        before = table.get(0, len(table))
        parts = run(disk, table, mode, folder, part_size=part_blocks * BLOCK)

        assert applied(old, parts) == new
        assert sum(part.kind == "zeros" for part in parts) <= 1
        assert all(part.data_length <= part_blocks * BLOCK for part in parts if part.kind == "hrl")
        # Exactly the blocks that differ or are unknown are shipped, and not a byte more.
        wanted = before != block_digests(new, KEY)
        sizes = np.full(len(wanted), BLOCK)
        sizes[-1] = len(new) - (len(wanted) - 1) * BLOCK
        assert sum(part.changed for part in parts) == int(sizes[wanted].sum())
        assert np.array_equal(table.get(0, len(table)), before)  # produce advances nothing by itself
        assert np.array_equal(advanced(table, parts), block_digests(new, KEY))
        # And the same again ships nothing.
        assert run(disk, table, mode, folder) == []


# -- single promises -----------------------------------------------------------------------------------------


def blocks_of(*fill: int) -> bytes:
    return b"".join(bytes([value]) * BLOCK for value in fill)


def test_unchanged_blocks_of_a_named_range_are_dropped(tmp_path: Path) -> None:
    old = blocks_of(*range(1, 17))
    new = bytearray(old)
    new[5 * BLOCK] ^= 1
    with table_of(tmp_path, old) as table:
        disk = ImageDisk(bytes(new), [Extent(0, 64 * KIB)])
        (part,) = run(disk, table, Mode.CHANGED, tmp_path)
    assert part.data_length == BLOCK
    assert part.pending.indices.tolist() == [5]
    assert disk.read_bytes == 64 * KIB


def test_contiguous_changed_blocks_are_one_log_entry(tmp_path: Path) -> None:
    with table_of(tmp_path, bytes(16 * BLOCK)) as table:
        disk = ImageDisk(blocks_of(*range(1, 17)), [Extent(0, 16 * BLOCK)])
        (part,) = run(disk, table, Mode.CHANGED, tmp_path)
    log = log_of(part.path.read_bytes())
    assert log.entries.offset.tolist() == [0]
    assert log.entries.length.tolist() == [16 * BLOCK]


def test_a_zero_extent_is_not_read_and_ships_only_what_was_not_zero(tmp_path: Path) -> None:
    old = blocks_of(1, 0, 2, 0)
    with table_of(tmp_path, old) as table:
        disk = ImageDisk(bytes(len(old)), [Extent(0, 4 * BLOCK, zero=True)])
        (part,) = run(disk, table, Mode.CHANGED, tmp_path)
    assert disk.read_bytes == 0
    assert decode_zeros(part.path.read_bytes()).tolist() == [[0, BLOCK], [2 * BLOCK, BLOCK]]


def test_an_unknown_cell_is_shipped_even_if_the_block_is_zero(tmp_path: Path) -> None:
    with table_of(tmp_path, bytes(4 * BLOCK)) as table:
        table.mark_unknown(1, 2)
        whole = ImageDisk(bytes(4 * BLOCK), [], whole=True)
        (part,) = run(whole, table, Mode.COMPARE, tmp_path)
        assert decode_zeros(part.path.read_bytes()).tolist() == [[BLOCK, 2 * BLOCK]]
        part.pending.apply(table)
        assert UNKNOWN not in table.get(0, 4)


def test_comparing_an_empty_disk_of_500_gib_reads_nothing(tmp_path: Path) -> None:
    size = 500 << 30
    with DigestTable.create(tmp_path / "t", size, KEY) as table:
        table.put(90_000_000, np.array([77], np.uint64))

        class Thin(ImageDisk):
            @property
            def size(self) -> int:
                return size

        disk = Thin(b"", [], whole=True)
        (part,) = run(disk, table, Mode.COMPARE, tmp_path)
    assert disk.read_bytes == 0
    assert decode_zeros(part.path.read_bytes()).tolist() == [[90_000_000 * BLOCK, BLOCK]]


def test_a_discard_of_100_gib_costs_one_extent(tmp_path: Path) -> None:
    size = 200 << 30
    with DigestTable.create(tmp_path / "t", size, KEY) as table:
        table.put(1000, np.arange(2, 1002, dtype=np.uint64))

        class Thin(ImageDisk):
            @property
            def size(self) -> int:
                return size

        (part,) = run(Thin(b"", [Extent(0, 100 << 30, zero=True)]), table, Mode.CHANGED, tmp_path)
        assert decode_zeros(part.path.read_bytes()).tolist() == [[1000 * BLOCK, 1000 * BLOCK]]
        part.pending.apply(table)
        assert list(table.nonzero_ranges()) == []


def test_parts_of_a_disk_are_chained(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=n) for n in range(1, 9)]
    supply = iter(ids)
    with table_of(tmp_path, bytes(8 * BLOCK)) as table:
        disk = ImageDisk(blocks_of(*range(1, 9)), [Extent(0, 8 * BLOCK)])
        before = uuid.UUID(int=99)
        parts = run(
            disk,
            table,
            Mode.CHANGED,
            tmp_path,
            part_size=4 * BLOCK,
            previous_id=before,
            new_id=lambda: next(supply),
        )
    assert [part.unique_id for part in parts] == ids[:2]
    headers = [log_of(part.path.read_bytes()).header for part in parts]
    assert [header.unique_id for header in headers] == ids[:2]
    assert [header.previous_id for header in headers] == [before, ids[0]]


def test_comparing_a_snapshot_of_changes_is_refused(tmp_path: Path) -> None:
    with table_of(tmp_path, bytes(BLOCK)) as table, pytest.raises(InvalidInputError):
        run(ImageDisk(bytes(BLOCK), []), table, Mode.COMPARE, tmp_path)


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    with table_of(tmp_path, bytes(BLOCK)) as table, pytest.raises(ConflictError):
        run(ImageDisk(bytes(2 * BLOCK), []), table, Mode.CHANGED, tmp_path)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with table_of(tmp_path, bytes(3 * MIB)) as table:
        disk = ImageDisk(b"x" * (3 * MIB), [Extent(0, 3 * MIB)])
        run(disk, table, Mode.CHANGED, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (MIB, 3 * MIB)
    assert told[-1] == (3 * MIB, 3 * MIB)


# -- failure -------------------------------------------------------------------------------------------------


def test_a_source_that_fails_at_the_end_leaves_no_file_and_no_budget(tmp_path: Path) -> None:
    budget = SpoolBudget(MIB)
    spool = tmp_path / "spool"
    spool.mkdir()
    with table_of(tmp_path, bytes(8 * BLOCK)) as table:
        disk = ImageDisk(
            b"x" * (8 * BLOCK), [Extent(0, 8 * BLOCK)], fail_at_end=UnavailableError("it started")
        )
        with pytest.raises(UnavailableError):
            run(disk, table, Mode.CHANGED, spool, budget=budget)
    assert list(spool.iterdir()) == []
    assert budget.used == 0


def test_cancelling_stops_between_reads(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    reads: list[int] = []
    with table_of(tmp_path, bytes(8 * MIB)) as table:
        disk = ImageDisk(b"x" * (8 * MIB), [Extent(0, 8 * MIB)], on_read=lambda: reads.append(1))
        with pytest.raises(CancelledError):
            run(disk, table, Mode.CHANGED, spool, cancelled=lambda: len(reads) > 2)
    assert len(reads) == 3
    assert list(spool.iterdir()) == []


def test_closing_the_generator_removes_the_unfinished_part(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    budget = SpoolBudget(MIB)
    with table_of(tmp_path, bytes(8 * BLOCK)) as table:
        disk = ImageDisk(b"x" * (8 * BLOCK), [Extent(0, 4 * BLOCK), Extent(6 * BLOCK, BLOCK)])
        parts = produce(
            disk,
            VDA,
            table,
            Mode.CHANGED,
            spool,
            digest_key=KEY,
            time=TIME,
            part_size=2 * BLOCK,
            budget=budget,
        )
        first = next(parts)
        parts.close()  # type: ignore[attr-defined]
    assert list(spool.iterdir()) == [first.path]
    assert budget.used == first.length


def test_each_log_asks_anew_how_large_it_may_be(tmp_path: Path) -> None:
    content = blocks_of(*range(1, 8))
    sizes = iter([BLOCK, 4 * BLOCK, BLOCK, 2 * BLOCK])  # the first is only checked
    with table_of(tmp_path, bytes(len(content))) as table:
        disk = ImageDisk(content, [Extent(0, len(content))], whole=True)
        parts = run(disk, table, Mode.COMPARE, tmp_path, part_size=lambda: next(sizes))
    assert [part.data_length // BLOCK for part in parts] == [4, 1, 2]
    assert applied(bytes(len(content)), parts) == content


@pytest.mark.parametrize("passing", [True, False])
def test_only_logs_that_pass_have_no_checksums_of_their_data(tmp_path: Path, passing: bool) -> None:
    with table_of(tmp_path, bytes(2 * BLOCK)) as table:
        disk = ImageDisk(blocks_of(1, 2), [Extent(0, 2 * BLOCK)], whole=True)
        (part,) = run(disk, table, Mode.COMPARE, tmp_path, passing=passing)
    checksums = log_of(part.path.read_bytes()).entries.data_checksum
    assert bool(checksums.all()) is not passing
    assert applied(bytes(2 * BLOCK), [part]) == blocks_of(1, 2)
