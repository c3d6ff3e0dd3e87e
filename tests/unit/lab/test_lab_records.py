"""The record checker: accepts what one moment looked like, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.errors import CorruptError
from secondsite.lab.guest.layout import BLOCK, RECORDS_OFFSET
from secondsite.lab.images import ReadAt
from secondsite.lab.records import check_records, last_record
from support.record_writer import empty_disks, place, write_record

SEED = 0xFEEDFACECAFEBEEF
SLOTS = 256


def reads(disk: bytes | bytearray) -> ReadAt:
    return lambda offset, length: bytes(disk[offset : offset + length])


def written(last: int, disks: int = 2) -> list[bytearray]:
    made = empty_disks(SEED, disks, SLOTS)
    for n in range(1, last + 1):
        write_record(made, SEED, n, time_ns=n * 1000)
    return made


@pytest.fixture(scope="module")
def early() -> list[bytes]:
    return [bytes(disk) for disk in written(300)]


@pytest.fixture(scope="module")
def late() -> list[bytes]:
    return [bytes(disk) for disk in written(309)]


@given(last=st.integers(0, 40), disks=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_every_prefix_is_accepted(last: int, disks: int) -> None:
    found = check_records([reads(disk) for disk in written(last, disks)])
    assert found.problems == ()
    assert found.last == last
    assert found.ok


def test_a_prefix_that_went_round_the_slots_is_accepted_and_dated(early: list[bytes]) -> None:
    found = check_records([reads(disk) for disk in early])
    assert found.ok
    assert found.last == last_record([reads(disk) for disk in early]) == 300
    assert found.last_time == datetime.fromtimestamp(0, UTC).replace(microsecond=300)
    assert found.slots == (SLOTS, SLOTS)
    assert all(0 < count < 150 for count in found.records)


def test_disks_of_two_moments_are_found(early: list[bytes], late: list[bytes]) -> None:
    for mixed in ([early[0], late[1]], [late[0], early[1]]):
        assert not check_records([reads(disk) for disk in mixed]).ok


@given(skipped=st.integers(301, 308))
@settings(max_examples=8, deadline=None)
def test_one_lost_write_is_found(early: list[bytes], skipped: int) -> None:
    disks = [bytearray(disk) for disk in early]
    for n in range(301, 310):
        if n != skipped:
            write_record(disks, SEED, n, time_ns=n * 1000)
    found = check_records([reads(disk) for disk in disks])
    assert found.bad_slots == 1
    assert (
        f"disk {skipped % 2}, slot {place(SEED, skipped, SLOTS)}: expected record {skipped}"
        in found.problems[0]
    )


@given(offset=st.integers(0, SLOTS * BLOCK - 1), bit=st.integers(0, 7), disk=st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_one_flipped_bit_is_found_wherever_it_is(
    early: list[bytes], offset: int, bit: int, disk: int
) -> None:
    disks = [bytearray(content) for content in early]
    disks[disk][RECORDS_OFFSET + offset] ^= 1 << bit
    assert not check_records([reads(content) for content in disks]).ok


def test_a_block_of_zeros_in_place_of_a_record_is_found(early: list[bytes]) -> None:
    disks = [bytearray(disk) for disk in early]
    offset = RECORDS_OFFSET + place(SEED, 299, SLOTS) * BLOCK
    disks[1][offset : offset + BLOCK] = bytes(BLOCK)
    found = check_records([reads(disk) for disk in disks])
    assert found.problems == (f"disk 1, slot {place(SEED, 299, SLOTS)}: expected record 299, found zeros",)


def test_problems_are_counted_but_not_all_told(early: list[bytes]) -> None:
    disks = [bytearray(disk) for disk in early]
    disks[0][RECORDS_OFFSET:] = b"\xaa" * (SLOTS * BLOCK)
    found = check_records([reads(disk) for disk in disks])
    assert found.bad_slots == SLOTS
    assert len(found.problems) == 20


def test_files_are_read_as_well_as_functions(early: list[bytes], tmp_path: Path) -> None:
    paths = []
    for number, disk in enumerate(early):
        paths.append(tmp_path / f"{number}.raw")
        paths[-1].write_bytes(disk)
    assert check_records(paths) == check_records([reads(disk) for disk in early])


def test_disks_in_the_wrong_order_or_of_another_guest_are_refused(early: list[bytes]) -> None:
    with pytest.raises(CorruptError, match="says that it is disk"):
        check_records([reads(early[1]), reads(early[0])])
    with pytest.raises(CorruptError, match="different guests"):
        check_records([reads(early[0]), reads(empty_disks(SEED + 1)[1])])
    with pytest.raises(CorruptError, match="no label"):
        check_records([reads(bytes(len(early[0])))])
