"""A sync that fails drops what it could not write, and the next one says yes (Linux, since 4.13 the error is told once).

What is done again after such an error must be written again, or a later power cut brings back what was there before it.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import pytest

from secondsite import durable
from secondsite.blocks import DigestTable
from support.simulator.disk import STEPS, DiskPlan, Disks, SimDisk

pytestmark = pytest.mark.fault
KEY = bytes(32)
SIZE = 600 * 4096
OLD, NEW = np.full(600, 7, np.uint64), np.full(600, 8, np.uint64)


@pytest.fixture
def disks() -> Iterator[Disks]:
    disks = Disks()
    patches = [mock.patch.object(os, name, disks.through(name, getattr(os, name))) for name in STEPS]
    patches.append(mock.patch.object(durable, "punch_hole", disks.through("punch_hole", durable.punch_hole)))
    for patch in patches:
        patch.start()
    yield disks
    for patch in patches:
        patch.stop()


@pytest.mark.parametrize("zeros", [False, True], ids=["digests", "zeros"])
def test_cells_that_are_put_again_after_a_failed_sync_survive_a_power_cut(
    disks: Disks, tmp_path: Path, zeros: bool
) -> None:
    """The cells were in the page cache already, so the repetition wrote nothing; after the cut the old digest stood there
    again, and a block that got its old contents back was not shipped."""
    root = tmp_path / "d"
    root.mkdir()
    path = root / "vda.tbl"
    with DigestTable.create(path, SIZE, KEY) as table:
        table.put(0, OLD)
        table.sync()
    disk = SimDisk(root, Random(0))
    expected = np.zeros(600, np.uint64) if zeros else NEW

    def advance(table: DigestTable) -> None:
        if zeros:
            for first in range(0, 600, 10):  # few at a time are written, not punched
                table.fill_zero(first, 10)
        else:
            table.put(0, NEW)

    with disks.on(disk):
        with DigestTable.open(path, KEY, writable=True) as table:
            advance(table)
            disk.begin(DiskPlan(error_at=0))
            with pytest.raises(OSError, match="Input/output"):
                table.sync()
            disk.begin(DiskPlan())
        with DigestTable.open(path, KEY, writable=True) as table:  # the retry
            advance(table)
            table.sync()
    disk.cut_power()
    with DigestTable.open(path, KEY) as table:
        assert table.get(0, 600).tolist() == expected.tolist()
    disk.close()


@pytest.mark.parametrize("again", [False, True], ids=["the same table", "opened again"])
def test_cells_whose_second_writing_failed_too_are_written_before_the_next_sync(
    disks: Disks, tmp_path: Path, again: bool
) -> None:
    """Two errors in a row, and the third sync said yes to what had never been written."""
    root = tmp_path / "d"
    root.mkdir()
    path = root / "vda.tbl"
    with DigestTable.create(path, SIZE, KEY) as table:
        table.put(0, OLD)
        table.sync()
    disk = SimDisk(root, Random(0))
    with disks.on(disk):
        table = DigestTable.open(path, KEY, writable=True)
        table.put(0, NEW)
        disk.begin(DiskPlan(error_at=0))
        failing = mock.patch.object(durable, "write_again", side_effect=OSError(errno.EIO, "again"))
        with failing, pytest.raises(OSError, match="Errno 5"):
            table.sync()
        disk.begin(DiskPlan())
        if again:
            table.close()
            table = DigestTable.open(path, KEY, writable=True)
        with table:
            table.put(0, NEW)
            table.sync()
    disk.cut_power()
    with DigestTable.open(path, KEY) as table:
        assert table.get(0, 600).tolist() == NEW.tolist()
    disk.close()


def test_a_table_whose_growth_met_an_error_has_its_new_size_after_a_power_cut(
    disks: Disks, tmp_path: Path
) -> None:
    """Its header was in the page cache already, so the repetition found nothing to do; the cut brought the old size back."""
    for step in itertools.count():
        root = tmp_path / str(step)
        root.mkdir()
        path = root / "vda.tbl"
        with DigestTable.create(path, SIZE, KEY) as table:
            table.put(0, OLD)
            table.sync()
        disk = SimDisk(root, Random(0))
        failed = False
        with disks.on(disk):
            with DigestTable.open(path, KEY, writable=True) as table:
                disk.begin(DiskPlan(error_at=step))
                try:
                    table.resize(2 * SIZE)
                except OSError:
                    failed = True
                disk.begin(DiskPlan())
            with DigestTable.open(path, KEY, writable=True) as table:  # the retry
                table.resize(2 * SIZE)
                table.sync()
        disk.cut_power()
        with DigestTable.open(path, KEY) as table:
            assert table.disk_size == 2 * SIZE, step
            assert table.get(0, 1200).tolist() == [*OLD.tolist(), *[0] * 600], step
        disk.close()
        if not failed:
            break
    assert step > 4
