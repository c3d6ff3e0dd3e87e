"""The pending record: durable, repeatable, and never half believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from secondsite.blocks import UNKNOWN, DigestTable
from secondsite.capture.pending import PendingBlocks, PendingRecord, mark_all_unknown
from secondsite.errors import TrackingLostError
from secondsite.model.ids import Digest, DiskKey, Sequence
from secondsite.model.units import BLOCK

KEY = b"k" * 32
VDA, VDB = DiskKey("vda"), DiskKey("vdb")


@dataclass
class Promised:
    disk: DiskKey
    pending: PendingBlocks


def runs(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[dict[DiskKey, DigestTable]]:
    opened = {key: DigestTable.create(tmp_path / f"{key}.tbl", 16 * BLOCK, KEY) for key in (VDA, VDB)}
    yield opened
    for table in opened.values():
        table.close()


@pytest.fixture
def record() -> PendingRecord:
    return PendingRecord.of(
        Sequence(7),
        Digest("ab" * 32),
        "ss-1",
        [
            Promised(VDA, PendingBlocks.of_data(runs((1, 3), (9, 10)), np.array([11, 12, 19], np.uint64))),
            Promised(VDA, PendingBlocks.of_zeros(runs((4, 6)))),
            Promised(VDB, PendingBlocks.of_data(runs((0, 1)), np.array([50], np.uint64))),
        ],
    )


def test_a_loaded_record_does_what_the_saved_one_would(
    tmp_path: Path, record: PendingRecord, tables: dict[DiskKey, DigestTable]
) -> None:
    tables[VDA].put(0, np.arange(100, 116, dtype=np.uint64))
    record.save(tmp_path / "pending")
    loaded = PendingRecord.load(tmp_path / "pending")
    assert loaded is not None
    assert (loaded.sequence, loaded.digest, loaded.checkpoint) == (7, "ab" * 32, "ss-1")
    for _ in range(2):  # a crash may come after any step, so it is applied again
        loaded.apply(tables)
        assert tables[VDA].get(0, 11).tolist() == [100, 11, 12, 103, 0, 0, 106, 107, 108, 19, 110]
        assert tables[VDB].get(0, 2).tolist() == [50, 0]


def test_marking_unknown_touches_exactly_the_pending_blocks(
    record: PendingRecord, tables: dict[DiskKey, DigestTable]
) -> None:
    record.mark_unknown(tables)
    assert np.flatnonzero(tables[VDA].get(0, 16) == UNKNOWN).tolist() == [1, 2, 4, 5, 9]
    assert np.flatnonzero(tables[VDB].get(0, 16) == UNKNOWN).tolist() == [0]


def test_saving_replaces_and_discarding_twice_is_fine(tmp_path: Path, record: PendingRecord) -> None:
    path = tmp_path / "pending"
    record.save(path)
    PendingRecord.of(Sequence(0), Digest(""), "", []).save(path)
    loaded = PendingRecord.load(path)
    assert loaded is not None
    assert loaded.sequence == 0
    PendingRecord.discard(path)
    PendingRecord.discard(path)
    assert PendingRecord.load(path) is None
    assert list(tmp_path.iterdir()) == []


def test_every_torn_or_flipped_record_is_refused(tmp_path: Path, record: PendingRecord) -> None:
    path = tmp_path / "pending"
    record.save(path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(TrackingLostError):
            PendingRecord.load(path)
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(TrackingLostError):
            PendingRecord.load(path)


def test_after_a_lost_record_no_cell_is_trusted(tables: dict[DiskKey, DigestTable]) -> None:
    mark_all_unknown(tables)
    assert all((table.get(0, len(table)) == UNKNOWN).all() for table in tables.values())
