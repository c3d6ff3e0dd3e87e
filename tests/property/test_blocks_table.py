"""A digest table does what an array does, and its ranges are exactly what is not zero."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.blocks import UNKNOWN, DigestTable, block_digests, zero_blocks

KEY = bytes(range(32))
BLOCKS = 20_000

spans = st.tuples(st.integers(0, BLOCKS - 1), st.integers(0, 9_000)).map(
    lambda pair: (pair[0], min(pair[1], BLOCKS - pair[0]))
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), spans, st.integers(0, 3)),
        st.tuples(st.just("scatter"), spans, st.integers(0, 3)),
        st.tuples(st.just("unknown"), spans, st.just(0)),
        st.tuples(st.just("zero"), spans, st.just(0)),
        st.tuples(st.just("reopen"), st.just((0, 0)), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_a_table_is_an_array_of_cells(history):
    model = np.zeros(BLOCKS, np.uint64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        table = DigestTable.create(path, BLOCKS * 4096, KEY)
        for action, (first, count), value in history:
            if action == "put":
                values = np.arange(count, dtype=np.uint64) * np.uint64(value)
                table.put(first, values)
                model[first : first + count] = values
            elif action == "scatter":
                indices = np.arange(first, first + count, 3)
                table.put(indices, np.full(len(indices), value, np.uint64))
                model[indices] = value
            elif action == "unknown":
                table.mark_unknown(first, count)
                model[first : first + count] = UNKNOWN
            elif action == "zero":
                table.fill_zero(first, count)
                model[first : first + count] = 0
            else:
                table.close()
                table = DigestTable.open(path, KEY, writable=True)
        assert (table.get(0, BLOCKS) == model).all()
        edges = np.flatnonzero(np.diff(model != 0, prepend=False, append=False)).reshape(-1, 2)
        assert list(table.nonzero_ranges()) == [(start, stop - start) for start, stop in edges.tolist()]
        table.close()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4095), st.integers(1, 255)), max_size=6),
    st.integers(0, 4095),
)
def test_digests_tell_zero_from_not_zero_block_by_block(blocks, tail):
    data = bytearray()
    for zero, at, value in blocks:
        block = bytearray(4096)
        if not zero:
            block[at] = value
        data += block
    data += bytes(tail)
    expected = [zero for zero, _, _ in blocks] + [True] * (tail > 0)
    assert zero_blocks(data).tolist() == expected
    digests = block_digests(data, KEY)
    assert (digests == 0).tolist() == expected
    assert not (digests == UNKNOWN).any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 139_999), st.integers(1, 9_000), st.integers(0, 2)), max_size=6))
def test_fingerprints_are_equal_exactly_if_the_cells_are(history):
    blocks = 140_000  # more than one window
    model = np.zeros(blocks, np.uint64)
    with tempfile.TemporaryDirectory() as folder:
        made = DigestTable.create(Path(folder) / "made", blocks * 4096, KEY)
        for first, count, value in history:
            values = np.full(min(count, blocks - first), value, np.uint64)
            made.put(first, values)
            model[first : first + len(values)] = values
        written = DigestTable.create(Path(folder) / "written", blocks * 4096, KEY)
        with (Path(folder) / "written").open("r+b") as file:  # no holes at all
            file.seek(4096)
            file.write(model.astype("<u8").tobytes())
        found = made.fingerprint()
        assert written.fingerprint() == found
        other = blocks - 1 if not history else history[0][0]
        written.put(other, np.array([model[other] ^ np.uint64(4)], np.uint64))
        assert written.fingerprint() != found
        written.put(other, model[other : other + 1])
        assert written.fingerprint() == found
        made.close()
        written.close()
