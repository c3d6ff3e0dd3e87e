import numpy as np
import pytest

from secondsite.hrl.index import BASE, ZERO, ExtentIndex, Piece
from secondsite.hrl.lookup import ExtentLookup
from support.hrl_logs import build_log, read


def index(*extents):
    """An index of (start, end, source, location)."""
    columns = np.array(extents, np.int64).reshape(-1, 4).T
    return ExtentIndex(*columns)


def rows(found):
    return list(
        zip(
            found.start.tolist(),
            found.end.tolist(),
            found.source.tolist(),
            found.location.tolist(),
            strict=True,
        )
    )


def test_an_empty_index_is_all_base():
    empty = ExtentIndex.empty()
    assert (len(empty), empty.covered) == (0, 0)
    assert empty.lookup(4096, 8192) == [Piece(4096, 8192, BASE, 4096)]
    assert empty.lookup(4096, 0) == []


def test_lookup_covers_the_range_without_gaps():
    found = index((4096, 8192, 3, 100), (8192, 12288, ZERO, 0), (16384, 20480, 1, 0))
    assert found.lookup(0, 24576) == [
        Piece(0, 4096, BASE, 0),
        Piece(4096, 4096, 3, 100),
        Piece(8192, 4096, ZERO, 0),
        Piece(12288, 4096, BASE, 12288),
        Piece(16384, 4096, 1, 0),
        Piece(20480, 4096, BASE, 20480),
    ]


def test_lookup_within_an_extent_moves_the_location_along():
    found = index((4096, 12288, 3, 1000), (12288, 16384, ZERO, 0))
    assert found.lookup(5120, 512) == [Piece(5120, 512, 3, 2024)]
    assert found.lookup(12800, 512) == [Piece(12800, 512, ZERO, 0)]


def test_pieces_hold_plain_integers():
    piece = index((0, 512, 3, 1000)).lookup(0, 512)[0]
    assert all(type(value) is int for value in piece)


def test_the_upper_layer_wins_and_the_rest_shows_through():
    upper, lower = index((4096, 8192, 1, 0)), index((0, 16384, 0, 1000))
    assert rows(upper.overlay(lower)) == [
        (0, 4096, 0, 1000),
        (4096, 8192, 1, 0),
        (8192, 16384, 0, 9192),
    ]
    assert rows(lower.overlay(upper)) == [(0, 16384, 0, 1000)]


def test_zeros_hide_data_and_data_hide_zeros():
    zeros = ExtentIndex.from_zeros(np.array([[0, 8192]]))
    data = index((4096, 12288, 0, 500))
    assert rows(zeros.overlay(data)) == [(0, 8192, ZERO, 0), (8192, 12288, 0, 4596)]
    assert rows(data.overlay(zeros)) == [(0, 4096, ZERO, 0), (4096, 12288, 0, 500)]


def test_neighbours_that_continue_each_other_are_joined():
    assert rows(index((0, 512, 0, 0), (512, 1024, 0, 512))) == [(0, 1024, 0, 0)]
    assert rows(index((0, 512, ZERO, 0), (512, 1024, ZERO, 0))) == [(0, 1024, ZERO, 0)]


@pytest.mark.parametrize("second", [(512, 1024, 0, 513), (512, 1024, 1, 512), (1024, 1536, 0, 512)])
def test_neighbours_that_do_not_continue_each_other_stay_apart(second):
    assert len(index((0, 512, 0, 0), second)) == 2


def test_merge_takes_the_newest_layer_last():
    layers = [index((0, 4096, number, 0)) for number in range(5)]
    assert rows(ExtentIndex.merge(layers)) == [(0, 4096, 4, 0)]
    assert rows(ExtentIndex.merge([])) == []


def test_later_entries_of_a_log_win():
    data = build_log([(0, b"a" * 2048), (512, b"b" * 512), (0, b"c" * 512)])
    assert rows(ExtentIndex.from_log(read(data), 7)) == [
        (0, 512, 7, 10752),
        (512, 1024, 7, 10240),
        (1024, 2048, 7, 9216),
    ]


def test_entries_of_a_log_may_come_in_any_order():
    data = build_log([(4096, b"a" * 512), (0, b"b" * 512)])
    assert rows(ExtentIndex.from_log(read(data), 0)) == [(0, 512, 0, 8704), (4096, 4608, 0, 8192)]


def test_a_log_that_rewrites_one_sector_keeps_the_last_write():
    data = build_log([(0, bytes([i % 256]) * 512) for i in range(3000)])
    found = ExtentIndex.from_log(read(data), 0)
    assert len(found) == 1
    assert data[found.location[0]] == 2999 % 256


def test_extents_of_a_source():
    found = index((0, 512, ZERO, 0), (512, 1024, 1, 0), (4096, 8192, ZERO, 0))
    assert found.extents_of(ZERO).tolist() == [[0, 512], [4096, 4096]]
    assert found.covered == 512 + 512 + 4096


@pytest.mark.parametrize("reach", [1, 40, 4096])
def test_merge_is_the_same_as_laying_the_layers_over_each_other_one_by_one(reach):
    """With short extents all are painted at once; with far ones among them that would take long, and halves are laid."""
    choose = np.random.default_rng(reach)
    layers = []
    for number in range(200):
        starts = np.unique(choose.integers(0, 4096, 6))
        ends = np.minimum(starts + choose.integers(1, reach + 1, len(starts)), np.append(starts[1:], 4096))
        kinds = np.where(choose.random(len(starts)) < 0.2, ZERO, number)
        places = np.where(kinds == ZERO, 0, choose.integers(0, 1 << 30, len(starts)))
        layers.append(ExtentIndex(starts, ends, kinds, places))
    layers[50:50] = [ExtentIndex.empty()] * 3
    one_by_one = ExtentIndex.empty()
    for layer in layers:
        one_by_one = layer.overlay(one_by_one)
    assert rows(ExtentIndex.merge(layers)) == rows(one_by_one)


def test_an_index_under_another_number_is_found_there():
    found = index((0, 512, 0, 4096), (1024, 2048, 0, 8192))
    other = found.as_source(7)
    assert rows(other) == [(0, 512, 7, 4096), (1024, 2048, 7, 8192)]
    assert other.lookup(1024, 512) == [Piece(1024, 512, 7, 8192)]
    assert rows(found) == [(0, 512, 0, 4096), (1024, 2048, 0, 8192)]


def test_an_index_made_of_its_own_columns_is_the_same():
    found = index((0, 512, 3, 4096), (1024, 2048, ZERO, 0))
    plain = ExtentLookup(*found.columns)
    assert len(plain) == 2
    assert plain.lookup(0, 4096) == found.lookup(0, 4096)
    assert rows(ExtentIndex.from_lookup(plain)) == rows(found)
    assert rows(ExtentIndex.from_lookup(ExtentLookup(*ExtentIndex.empty().columns))) == []
    assert ExtentIndex.from_lookup(found) is found
