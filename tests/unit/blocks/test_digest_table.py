import errno
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from secondsite import durable
from secondsite.blocks import UNKNOWN, DigestTable
from secondsite.errors import ConflictError, CorruptError, InvalidInputError, NoSpaceError, UnsupportedError

KEY = bytes(range(32))
GIB = 1 << 30


def cells(*values):
    return np.array(values, np.uint64)


@pytest.fixture
def table(tmp_path):
    with DigestTable.create(tmp_path / "vda.digests", 64 * GIB, KEY) as made:
        yield made


def space(path):
    return path.stat().st_blocks * 512


def test_a_new_table_is_all_zeros_and_takes_no_space(table):
    assert len(table) == 64 * GIB // 4096
    assert table.get(0, 1000).tolist() == [0] * 1000
    assert list(table.nonzero_ranges()) == []
    assert space(table.path) <= 8192
    assert table.path.stat().st_size == 4096 + 8 * len(table)


def test_cells_survive_closing(table):
    table.put(5, cells(10, 11, 12))
    table.put(np.array([100, 7, 10**6]), cells(1000, 70, 99))
    table.sync()
    table.close()
    with DigestTable.open(table.path, KEY) as again:
        assert again.disk_size == 64 * GIB
        assert again.get(4, 5).tolist() == [0, 10, 11, 70, 0]
        assert again.get(100, 1).tolist() == [1000]
        assert again.get(10**6, 1).tolist() == [99]


def test_what_get_returns_does_not_change_later(table):
    before = table.get(0, 4)
    table.put(0, cells(1, 2, 3, 4))
    assert before.tolist() == [0, 0, 0, 0]


def test_nonzero_ranges_join_neighbours_and_leave_out_zero_cells(table):
    table.put(10, cells(5, 6, 0, 7))
    table.mark_unknown(14, 3)
    table.put(len(table) - 1, cells(9))
    assert list(table.nonzero_ranges()) == [(10, 2), (13, 4), (len(table) - 1, 1)]


def test_windows_come_from_the_end_and_holes_are_skipped(table):
    table.put(10, cells(5))
    table.put(len(table) - 1, cells(9))
    windows = list(table.windows_from_end())
    assert [first for first, _ in windows] == [len(table) - (1 << 17), 0]
    assert windows[0][1][-1] == 9
    assert windows[1][1][10] == 5


def test_a_range_over_several_scans_is_one(table):
    table.mark_unknown(1000, 300_000)
    assert list(table.nonzero_ranges()) == [(1000, 300_000)]


def test_zeros_put_into_a_hole_fill_nothing(table):
    before = space(table.path)
    table.put(np.arange(0, 10**6, 500), np.zeros(2000, np.uint64))
    table.put(0, np.zeros(1000, np.uint64))
    table.put(0, np.zeros(100_000, np.uint64))
    table.sync()
    assert space(table.path) == before


def test_fill_zero_gives_space_back_and_keeps_the_neighbours(table):
    table.mark_unknown(0, 1_000_000)
    table.sync()
    filled = space(table.path)
    table.fill_zero(3, 999_990)
    table.sync()
    assert list(table.nonzero_ranges()) == [(0, 3), (999_993, 7)]
    assert table.get(0, 5).tolist() == [1, 1, 1, 0, 0]
    assert filled >= 8_000_000
    assert space(table.path) < 65536


def test_fill_zero_of_a_few_cells(table):
    table.mark_unknown(0, 10)
    table.fill_zero(2, 5)
    assert list(table.nonzero_ranges()) == [(0, 2), (7, 3)]


def test_putting_many_zeros_over_cells_clears_them(table):
    table.mark_unknown(0, 10_000)
    table.put(1, np.zeros(9_000, np.uint64))
    assert list(table.nonzero_ranges()) == [(0, 1), (9_001, 999)]


def test_a_copy_holds_the_same_and_stays_sparse(table, tmp_path):
    table.put(77, cells(5))
    table.mark_unknown(5_000_000, 3)
    copy = tmp_path / "copy"
    table.copy_to(copy)
    with DigestTable.open(copy, KEY) as again:
        assert list(again.nonzero_ranges()) == [(77, 1), (5_000_000, 3)]
    assert space(copy) < 65536
    with pytest.raises(ConflictError):
        table.copy_to(copy)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.get(-1, 1),
        lambda t: t.get(0, len(t) + 1),
        lambda t: t.put(len(t), cells(1)),
        lambda t: t.put(np.array([0, len(t)]), cells(1, 2)),
        lambda t: t.put(np.array([-1]), cells(1)),
        lambda t: t.put(np.array([1, 2]), cells(1)),
        lambda t: t.mark_unknown(len(t) - 1, 2),
        lambda t: t.fill_zero(0, -1),
        lambda t: t.resize(0),
    ],
)
def test_blocks_outside_of_the_disk_are_refused(table, call):
    with pytest.raises(InvalidInputError):
        call(table)


def test_a_table_opened_for_reading_refuses_changes(table):
    with DigestTable.open(table.path, KEY) as reader:
        for call in (
            lambda: reader.put(0, cells(1)),
            lambda: reader.mark_unknown(0, 1),
            lambda: reader.fill_zero(0, 1),
            lambda: reader.resize(4096),
        ):
            with pytest.raises(ConflictError):
                call()


def test_a_table_is_never_created_over_another(table):
    with pytest.raises(ConflictError):
        DigestTable.create(table.path, 4096, KEY)


@pytest.mark.parametrize("disk_size", [0, -1, 1 << 60])
def test_a_disk_size_out_of_range_is_refused(tmp_path, disk_size):
    with pytest.raises(InvalidInputError):
        DigestTable.create(tmp_path / "t", disk_size, KEY)


def test_a_key_of_another_length_is_refused(tmp_path):
    with pytest.raises(InvalidInputError):
        DigestTable.create(tmp_path / "t", 4096, b"short")


def test_another_key_is_noticed(table):
    with pytest.raises(CorruptError, match="another key"):
        DigestTable.open(table.path, bytes(32))


@pytest.mark.parametrize("at", [0, 8, 12, 16, 24, 32, 63, 64, 4095])
def test_a_damaged_header_is_noticed(table, at):
    table.close()
    with table.path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ 0x20]))
    with pytest.raises(CorruptError):
        DigestTable.open(table.path, KEY)


@pytest.mark.parametrize("length", [0, 100, 4095, 4096, 5000])
def test_a_file_that_was_cut_is_noticed(table, length):
    table.close()
    os.truncate(table.path, length)
    with pytest.raises(CorruptError):
        DigestTable.open(table.path, KEY, writable=True)


def test_another_version_is_refused_as_such(table):
    table.close()
    fields = struct.pack("<8sIIQ8s", b"SSDIGTBL", 2, 4096, 64 * GIB, bytes(8))
    with table.path.open("r+b") as file:
        file.write(fields + blake3(fields).digest())
    with pytest.raises(UnsupportedError):
        DigestTable.open(table.path, KEY)


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    [
        (10 * 4096, 12 * 4096, None),
        (10 * 4096, 4 * 4096, None),
        (9 * 4096 + 512, 12 * 4096, 9),  # the last block was short
        (10 * 4096, 4 * 4096 + 512, 4),  # the last block becomes short
        (9 * 4096 + 512, 9 * 4096 + 1024, 9),
    ],
)
def test_resize_keeps_cells_and_distrusts_a_block_that_changes_its_length(tmp_path, before, after, marked):
    with DigestTable.create(tmp_path / "t", before, KEY) as table:
        table.put(0, np.arange(100, 100 + len(table), dtype=np.uint64))
        table.resize(after)
        expected = [100 + i for i in range(min(10, len(table)))] + [0] * (len(table) - 10)
        if marked is not None:
            expected[marked] = UNKNOWN
        assert table.get(0, len(table)).tolist() == expected
    with DigestTable.open(tmp_path / "t", KEY) as again:
        assert (again.disk_size, again.get(0, len(again)).tolist()) == (after, expected)


def test_cells_that_were_cut_off_do_not_come_back(tmp_path):
    with DigestTable.create(tmp_path / "t", 100 * 4096, KEY) as table:
        table.mark_unknown(0, 100)
        table.resize(50 * 4096)
        table.resize(100 * 4096)
        assert list(table.nonzero_ranges()) == [(0, 50)]


def test_cells_left_by_a_shrink_that_was_cut_do_not_come_back(tmp_path):
    """The header says 50 blocks, the file was not cut yet: what a power cut in `resize` leaves."""
    with DigestTable.create(tmp_path / "t", 100 * 4096, KEY) as table:
        table.mark_unknown(0, 100)
        table.sync()
    with DigestTable.create(tmp_path / "small", 50 * 4096, KEY) as small:
        header = small.path.read_bytes()[:4096]
    with (tmp_path / "t").open("r+b") as file:
        file.write(header)
    with DigestTable.open(tmp_path / "t", KEY, writable=True) as table:
        table.resize(100 * 4096)
        assert list(table.nonzero_ranges()) == [(0, 50)]


def test_of_an_index_that_comes_twice_the_last_counts(table):
    table.put(np.array([9, 3, 9, 3]), cells(1, 2, 3, 4))
    assert table.get(3, 7).tolist() == [4, 0, 0, 0, 0, 0, 3]


def test_scattered_cells_leave_the_pages_between_as_holes(table):
    table.put(np.arange(0, 512 * 4096, 512 * 64), np.full(64, 7, np.uint64))
    table.sync()
    assert space(table.path) <= 8192 + 64 * 4096


def test_zeros_put_between_cells_that_change_fill_no_hole(table):
    one_a_page = np.arange(0, 512 * 64, 512)
    digests = np.zeros(64, np.uint64)
    digests[[0, 63]] = 7
    table.put(one_a_page, digests)
    table.sync()
    assert space(table.path) <= 4096 + 8192 + 2 * 4096
    assert np.flatnonzero(table.get(0, 512 * 64)).tolist() == [0, 512 * 63]


def test_cells_of_neighbouring_pages_are_set_whichever_of_them_held_their_value_before(table):
    table.put(np.array([5, 1030]), cells(7, 9))
    table.put(np.array([5, 600, 1029, 1030, 5000]), cells(7, 8, 3, 4, 6))
    held = table.get(0, 6000)
    found = {index: int(held[index]) for index in np.flatnonzero(held).tolist()}
    assert found == {5: 7, 600: 8, 1029: 3, 1030: 4, 5000: 6}


def test_an_open_table_is_not_mapped_whatever_was_touched_of_it(table):
    # What is touched through a mapping is memory of the process: 400 MiB for 100,000 extents scattered over 1 TiB.
    table.put(np.arange(0, 512 * 4096, 512), np.full(4096, 7, np.uint64))
    table.fill_zero(512, 1)
    table.get(0, 512 * 4096)
    assert str(table.path) not in Path("/proc/self/maps").read_text()


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(table, monkeypatch):
    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        for call in (lambda: table.put(0, cells(5)), lambda: table.mark_unknown(0, 1)):
            with pytest.raises(NoSpaceError):
                call()
    table.put(0, cells(5))
    assert table.get(0, 1).tolist() == [5]


def test_closing_twice_is_fine(table):
    table.close()
    table.close()


def test_a_cell_that_is_set_while_a_table_is_written_again_stays(table, monkeypatch):
    """After a sync that failed the table is read and written piece by piece: what was set in between was undone."""
    table.put(5, cells(1))
    pread = os.pread
    threads = []

    def fail(_):
        raise OSError(errno.EIO, "the disk is gone")

    def read(fd, length, offset):
        data = pread(fd, length, offset)
        if not threads:
            waits = table._changing.locked()
            threads.append(threading.Thread(target=table.put, args=(5, cells(2))))
            threads[0].start()
            if not waits:
                threads[0].join(20)
        return data

    with monkeypatch.context() as patched:
        patched.setattr(durable, "fsync_file", fail)
        patched.setattr(os, "pread", read)
        with pytest.raises(OSError, match="gone"):
            table.sync()
    threads[0].join(20)
    assert table.get(5, 1).tolist() == [2]
