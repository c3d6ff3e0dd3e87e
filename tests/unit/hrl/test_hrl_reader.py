import struct

import numpy as np
import pytest

from secondsite.errors import CorruptError, UnsupportedError
from secondsite.hrl.format import ENTRY, entry_checksums, pack_metadata_header
from secondsite.hrl.reader import NotClosedError, read_log, verify_data
from support.hrl_logs import (
    DISK_SIZE,
    build_log,
    patched_header,
    patched_slot,
    read,
    reader_of,
    with_header,
)

LOG = build_log([(0, b"a" * 512), (4096, b"b" * 1024), (0, b"c" * 512)])
BLOCK = len(LOG) - 4096
"""Position of the block that holds the entries."""


def entries_of(log):
    return [
        tuple(row) for row in zip(log.entries.offset, log.entries.length, log.entries.location, strict=True)
    ]


def test_entries_come_in_order_of_application_with_their_locations():
    assert entries_of(read(LOG)) == [(0, 512, 8192), (4096, 1024, 8704), (0, 512, 9728)]


def test_bytes_behind_the_end_are_not_looked_at():
    assert entries_of(read(LOG + b"junk")) == entries_of(read(LOG))


def test_a_cookie_that_ends_in_a_space_is_accepted():
    assert len(read(patched_header(LOG, 7, b" ")).entries) == 3


def test_version_1_is_read():
    data = build_log([(0, b"a" * 512)], version=1)
    assert read(data).header.version == 1


def test_an_end_of_zero_means_not_closed():
    with pytest.raises(NotClosedError) as caught:
        read(with_header(LOG, end=0))
    assert caught.value.retry == "compare"


@pytest.mark.parametrize(
    ("offset", "patch", "error"),
    [
        (0, b"x", CorruptError),  # cookie
        (8, struct.pack("<I", 0x00030000), UnsupportedError),  # version
        (104, struct.pack("<I", 1), UnsupportedError),  # file type
        (44, struct.pack("<Q", len(LOG) + 1), CorruptError),  # end beyond the file
        (44, struct.pack("<Q", 1 << 63), CorruptError),
        (44, struct.pack("<Q", 8191), CorruptError),  # end before the first block's
        (44, struct.pack("<Q", len(LOG) - 512), CorruptError),  # end elsewhere
        (56, struct.pack("<I", 0), CorruptError),  # metadata size
        (56, struct.pack("<I", 1000), CorruptError),
        (56, struct.pack("<I", 512), CorruptError),
        (56, struct.pack("<I", 1 << 31), CorruptError),
        (24, struct.pack("<QQ", 4096, 4096), CorruptError),  # entries beyond the disk
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(offset, patch, error):
    with pytest.raises(error):
        read(patched_header(LOG, offset, patch))


@pytest.mark.parametrize("at", [3, 12, 24, 40, 60, 100, 110, 2000, 4095])
def test_a_flipped_bit_in_the_header_is_noticed(at):
    damaged = bytearray(LOG)
    damaged[at] ^= 0x10
    with pytest.raises(CorruptError):
        read(bytes(damaged))


@pytest.mark.parametrize("at", range(0, 32 * 4, 3))
def test_a_flipped_bit_in_a_metadata_block_is_noticed(at):
    damaged = bytearray(LOG)
    damaged[BLOCK + at] ^= 0x04
    with pytest.raises((CorruptError, UnsupportedError)):
        read(bytes(damaged))


@pytest.mark.parametrize(
    "distance",
    [1, 512, 4095, BLOCK, BLOCK - 4095, 1 << 63, (1 << 64) - 1],
)
def test_a_block_that_leads_out_of_the_log_or_into_itself_is_refused(distance):
    with pytest.raises(CorruptError):
        read(patched_slot(LOG, BLOCK, 0, struct.pack("<Q", distance), checksum_at=12))


@pytest.mark.parametrize(
    ("offset", "patch", "error"),
    [
        (0, struct.pack("<Q", 1), CorruptError),  # offset within a sector
        (0, struct.pack("<Q", DISK_SIZE), CorruptError),
        (0, struct.pack("<Q", (1 << 64) - 512), CorruptError),
        (12, struct.pack("<I", 100), CorruptError),  # length within a sector
        (12, struct.pack("<I", 1024), CorruptError),  # data would run into the block
        (12, struct.pack("<I", 0), CorruptError),
        (20, b"\x02", UnsupportedError),  # another operation
        (25, b"\x01", UnsupportedError),  # data somewhere else
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(offset, patch, error):
    with pytest.raises(error):
        read(patched_slot(LOG, BLOCK + 32, offset, patch))


@pytest.mark.parametrize("valid", [0, 2, 4, 0xFFFFFFFF])
def test_a_block_with_another_number_of_entries_than_it_says_is_refused(valid):
    with pytest.raises(CorruptError):
        read(patched_slot(LOG, BLOCK, 8, struct.pack("<I", valid), checksum_at=12))


def test_reserved_bytes_may_hold_anything():
    assert len(read(patched_slot(LOG, BLOCK + 32, 26, b"abcdef")).entries) == 3
    assert len(read(patched_slot(LOG, BLOCK, 16, b"reserved", checksum_at=12)).entries) == 3


def test_a_read_that_comes_back_short_is_corruption():
    with pytest.raises(CorruptError):
        read_log(reader_of(LOG[:-1]), len(LOG))


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 8191])
def test_a_file_too_short_for_a_log_is_refused(length):
    with pytest.raises(CorruptError):
        read(LOG[:length])


def test_damaged_data_are_found_by_verify_alone():
    damaged = bytearray(LOG)
    damaged[8704] ^= 1
    log = read(bytes(damaged))
    with pytest.raises(CorruptError) as caught:
        verify_data(log, reader_of(bytes(damaged)))
    assert caught.value.attributes["location"] == 8704


def test_a_data_checksum_of_zero_means_absent():
    without = patched_slot(LOG, BLOCK + 64, 21, bytes(4))
    assert verify_data(read(without), reader_of(without)) == 2


# -- the order of slots, where the specification is silent ---------------------------------------------------


def foreign_log(slots, times, payloads, *, empty=bytes(32)):
    """A log whose one block has entry i (None: empty) in each of its first slots, empties to fill up."""
    order = sorted(slot for slot in slots if slot is not None)
    body = b"".join(payloads[i] for i in order)
    block = bytearray()
    for slot in slots:
        if slot is None:
            block += empty
            continue
        entry = np.zeros(1, ENTRY)
        entry["offset"], entry["length"] = 0, len(payloads[slot])
        entry["timestamp"], entry["operation"] = times[slot], 1
        entry["checksum"] = entry_checksums(entry)
        block += entry.tobytes()
    assert len(block) == 15 * 32
    first = pack_metadata_header(0, 0) + bytes(480)
    second = pack_metadata_header(512 + len(body), len(order)) + bytes(block)
    header = build_log([], metadata_size=512)[:4096]
    return with_header(header + first + body + second, end=4096 + 1024 + len(body))


PAYLOADS = [b"1" * 512, b"2" * 1024, b"3" * 512]


def payload_order(data):
    return [data[at : at + size] for _, size, at in entries_of(read(data))]


@pytest.mark.parametrize("empty", [bytes(32), bytes(8) + b"\xff" * 4 + bytes(20)])
@pytest.mark.parametrize(
    "slots",
    [
        [0, 1, 2] + [None] * 12,
        [0, None, 1, None, None, 2] + [None] * 9,
        [None] * 12 + [2, 1, 0],
    ],
    ids=["ascending", "with gaps", "descending, empty ones first"],
)
def test_entries_are_found_wherever_their_slots_are(slots, empty):
    data = foreign_log(slots, [5, 5, 6], PAYLOADS, empty=empty)
    assert payload_order(data) == PAYLOADS


def test_ascending_slots_stay_so_when_the_clock_stepped_back():
    data = foreign_log([0, 1, 2] + [None] * 12, [7, 6, 5], PAYLOADS)
    assert payload_order(data) == PAYLOADS


def test_a_log_whose_order_cannot_be_told_is_refused():
    with pytest.raises(UnsupportedError):
        read(foreign_log([None] * 12 + [0, 1, 2], [5, 6, 7], PAYLOADS))


def test_a_log_whose_blocks_are_filled_in_two_ways_is_refused():
    from_front = foreign_log([0, 1, 2] + [None] * 12, [5, 5, 6], PAYLOADS)
    from_end = foreign_log([None] * 12 + [2, 1, 0], [5, 5, 6], PAYLOADS)
    # The second log's data and block follow the first log's; the block leads back to the first's.
    second = patched_slot(from_end[4096 + 512 :], 2048, 0, struct.pack("<Q", 2048 + 512), checksum_at=12)
    both = with_header(from_front + second, end=len(from_front + second))
    with pytest.raises(UnsupportedError, match="two ways"):
        read(both)


def test_metadata_blocks_beyond_all_measure_are_refused_unread():
    size = 1 << 25
    header = with_header(LOG[:4096], metadata_size=size, end=4096 + size)

    def read_at(offset, length):
        assert offset + length <= 4096
        return header[offset : offset + length]

    with pytest.raises(UnsupportedError):
        read_log(read_at, 4096 + size)
