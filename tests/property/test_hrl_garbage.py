"""Whatever the bytes are, a reader gives a log or refuses: never another exception, never a wrong log."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import CorruptError, UnsupportedError
from secondsite.hrl.format import HEADER_LENGTH
from secondsite.hrl.index import ExtentIndex
from secondsite.hrl.reader import verify_data
from secondsite.hrl.zeros import decode_zeros, encode_zeros
from support.hrl_logs import build_log, patched_header, patched_slot, read, reader_of

WRITES = [(i * 1536, bytes([i + 1]) * 512 * (1 + i % 2)) for i in range(20)]
LOG = build_log(WRITES, metadata_size=512)
EXPECTED = read(LOG)
BLOCKS = [4096, 4096 + 512 + sum(len(data) for _, data in WRITES[:15]), len(LOG) - 512]


def read_or_refuse(data):
    """Return the log, or None if it was refused the way it should be; check that it stays within the file."""
    try:
        log = read(data)
    except (CorruptError, UnsupportedError):
        return None
    entries = log.entries
    assert (entries.location >= HEADER_LENGTH).all()
    assert (entries.location + entries.length <= len(data)).all()
    assert (entries.offset + entries.length <= max(log.header.original_size, log.header.current_size)).all()
    ExtentIndex.from_log(log, 0)
    with suppress(CorruptError):
        verify_data(log, reader_of(data))
    return log


def test_a_log_cut_at_any_byte_is_refused():
    for length in range(len(LOG)):
        with pytest.raises(CorruptError):
            read(LOG[:length])


def test_a_log_whose_header_was_not_rewritten_is_refused_at_any_length():
    unclosed = patched_header(LOG, 44, bytes(8))
    for length in range(0, len(unclosed) + 1, 256):
        with pytest.raises(CorruptError):
            read(unclosed[:length])


@given(st.binary(max_size=9000))
def test_random_bytes_are_refused(data):
    assert read_or_refuse(data) is None


@given(st.binary(max_size=400))
def test_random_bytes_behind_a_good_header_are_refused_or_bounded(data):
    end = HEADER_LENGTH + 512 + len(data)
    read_or_refuse(patched_header(LOG[:HEADER_LENGTH], 44, struct.pack("<Q", end)) + bytes(512) + data)


@given(st.integers(0, len(LOG) * 8 - 1))
def test_a_flipped_bit_in_structures_is_noticed_and_in_data_moves_nothing(bit):
    damaged = bytearray(LOG)
    damaged[bit // 8] ^= 1 << (bit % 8)
    at = bit // 8
    in_structure = at < HEADER_LENGTH or any(block <= at < block + 512 for block in BLOCKS)
    log = read_or_refuse(bytes(damaged))
    if log is not None:
        # a cookie that ends in a space is one, and so is an empty slot's checksum
        assert not in_structure or at == 7
        assert log.entries.location.tolist() == EXPECTED.entries.location.tolist()
        if not in_structure:
            with pytest.raises(CorruptError):
                verify_data(log, reader_of(bytes(damaged)))


@given(st.integers(8, 125), st.binary(min_size=1, max_size=16))
def test_a_header_with_any_field_forged_and_its_checksum_right_never_leads_astray(at, patch):
    read_or_refuse(patched_header(LOG, at, patch))


@given(st.sampled_from(BLOCKS), st.integers(0, 15), st.integers(0, 31), st.binary(min_size=1, max_size=12))
def test_a_block_with_any_field_forged_and_its_checksum_right_never_leads_astray(block, slot, at, patch):
    patch = patch[: 32 - at]
    read_or_refuse(patched_slot(LOG, block + 32 * slot, at, patch, checksum_at=8 if slot else 12))


@given(st.binary(max_size=100))
def test_random_zero_lists_are_refused(data):
    with pytest.raises((CorruptError, UnsupportedError)):
        decode_zeros(data)


@given(st.binary(max_size=64), st.integers(0, 5))
def test_zero_lists_with_any_pairs_are_refused_or_encode_to_themselves(pairs, count):
    data = struct.pack("<8sIIQ", b"SSZEROS\n", 1, 0, count) + pairs
    try:
        extents = decode_zeros(data)
    except CorruptError:
        return
    assert encode_zeros(extents) == data
