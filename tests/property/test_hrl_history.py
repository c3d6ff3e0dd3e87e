"""Any history of writes and discards reads back: through logs and zeros, the index, and a merge of any part of it."""

import io
from contextlib import contextmanager

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.hrl.index import BASE, ZERO, ExtentIndex
from secondsite.hrl.merge import Layer, index_layers, merge_layers
from secondsite.hrl.reader import verify_data
from secondsite.hrl.writer import LogWriter
from secondsite.hrl.zeros import decode_zeros, encode_zeros
from support.hrl_logs import LOG_ID, TIME, apply, build_log, read, reader_of

SECTORS = 64
SIZE = SECTORS * 512

ranges = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 12)).map(
    lambda pair: (pair[0] * 512, min(pair[1], SECTORS - pair[0]) * 512)
)
writes = st.lists(st.tuples(ranges, st.integers(1, 255)), max_size=12).map(
    lambda found: [(offset, bytes([value]) * length) for (offset, length), value in found]
)
metadata_sizes = st.sampled_from([512, 1024, 4096])


@st.composite
def histories(draw):
    """Layers as (logs, zero extents), the zeros disjoint from the data of their layer."""
    layers = []
    for _ in range(draw(st.integers(0, 5))):
        logs = draw(st.lists(writes, max_size=3))
        written = np.zeros(SECTORS, bool)
        for log in logs:
            for offset, data in log:
                written[offset // 512 : (offset + len(data)) // 512] = True
        wanted = np.zeros(SECTORS, bool)
        for offset, length in draw(st.lists(ranges, max_size=4)):
            wanted[offset // 512 : (offset + length) // 512] = True
        zeros = [(sector * 512, 512) for sector in np.flatnonzero(wanted & ~written).tolist()]
        layers.append((logs, zeros))
    return layers


def base_disk():
    return bytearray(b"\xee" * SIZE)


def apply_model(history, disk):
    for logs, zeros in history:
        for log in logs:
            for offset, data in log:
                disk[offset : offset + len(data)] = data
        for offset, length in zeros:
            disk[offset : offset + length] = bytes(length)
    return disk


def layers_of(history, metadata_size=512):
    layers = []
    for logs, zeros in history:
        files = [build_log(log, disk_size=SIZE, metadata_size=metadata_size) for log in logs]
        layers.append(
            Layer([(read(data), reader_of(data)) for data in files], decode_zeros(encode_zeros(zeros)))
        )
    return layers


def read_through(index, readers, base, offset, length):
    parts = []
    expected = offset
    for piece in index.lookup(offset, length):
        assert piece.offset == expected
        assert piece.length > 0
        expected += piece.length
        if piece.source == BASE:
            parts.append(bytes(base[piece.location : piece.location + piece.length]))
        elif piece.source == ZERO:
            parts.append(bytes(piece.length))
        else:
            parts.append(readers[piece.source](piece.location, piece.length))
    assert expected == offset + length
    return b"".join(parts)


@given(writes, metadata_sizes, st.sampled_from([1, 2]))
def test_a_log_reads_back_what_was_written_in_order(history, metadata_size, version):
    data = build_log(history, disk_size=SIZE, metadata_size=metadata_size, version=version)
    log = read(data)
    entries = log.entries
    found = [
        (offset, data[at : at + length])
        for offset, length, at in zip(
            entries.offset.tolist(), entries.length.tolist(), entries.location.tolist(), strict=True
        )
    ]
    assert found == history
    assert verify_data(log, reader_of(data)) == len(history)


@given(histories(), ranges, metadata_sizes)
def test_the_index_of_a_history_is_the_disk(history, window, metadata_size):
    index, readers = index_layers(layers_of(history, metadata_size))
    model = apply_model(history, base_disk())
    offset, length = window
    assert read_through(index, readers, base_disk(), 0, SIZE) == model
    assert read_through(index, readers, base_disk(), offset, length) == model[offset : offset + length]


@given(histories())
def test_an_index_is_sorted_disjoint_and_joined(history):
    index, _ = index_layers(layers_of(history))
    assert (index.start < index.end).all()
    assert (index.end[:-1] <= index.start[1:]).all()
    touching = (index.end[:-1] == index.start[1:]) & (index.source[:-1] == index.source[1:])
    continuing = (index.source[1:] == ZERO) | (
        index.location[:-1] + (index.end - index.start)[:-1] == index.location[1:]
    )
    assert not (touching & continuing).any()


@given(histories())
def test_merging_in_any_tree_gives_the_same_index(history):
    indexes = []
    for number, layer in enumerate(layers_of(history)):
        assert layer.zeros is not None
        indexes.append(ExtentIndex.from_zeros(layer.zeros))
        indexes.extend(ExtentIndex.from_log(log, 10 * number + i) for i, (log, _) in enumerate(layer.logs))
    one_by_one = ExtentIndex.empty()
    for index in indexes:
        one_by_one = index.overlay(one_by_one)
    balanced = ExtentIndex.merge(indexes)
    for name in ("start", "end", "source", "location"):
        assert getattr(balanced, name).tolist() == getattr(one_by_one, name).tolist()


@settings(max_examples=60)
@given(histories(), st.integers(1, 40))
def test_merged_logs_and_zeros_do_what_the_layers_do_one_after_the_other(history, data_sectors):
    files = []

    @contextmanager
    def new_log():
        file = io.BytesIO()
        files.append(file)
        yield LogWriter(
            file, disk_size=SIZE, unique_id=LOG_ID, previous_id=None, time=TIME, metadata_size=512
        )

    zeros = merge_layers(layers_of(history), new_log, data_max=data_sectors * 512)
    disk = base_disk()
    written = np.zeros(SIZE, int)
    for file in files:
        log = read(file.getvalue())
        assert 0 < log.data_length <= data_sectors * 512
        for offset, length in zip(log.entries.offset, log.entries.length, strict=True):
            written[offset : offset + length] += 1
        apply(file.getvalue(), disk)
    for offset, length in zeros.tolist():
        written[offset : offset + length] += 1
        disk[offset : offset + length] = bytes(length)
    assert disk == apply_model(history, base_disk())
    assert written.max() <= 1  # the extents of a point are disjoint


@given(st.lists(ranges, max_size=10))
def test_a_zero_list_has_one_encoding(extents):
    data = encode_zeros(extents)
    covered = np.zeros(SECTORS, bool)
    for offset, length in extents:
        covered[offset // 512 : (offset + length) // 512] = True
    decoded = decode_zeros(data)
    again = np.zeros(SECTORS, bool)
    for offset, length in decoded.tolist():
        again[offset // 512 : (offset + length) // 512] = True
    assert (covered == again).all()
    assert encode_zeros(decoded) == data == encode_zeros(list(reversed(extents)))
