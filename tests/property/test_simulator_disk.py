"""The simulated disk itself: what is synced survives every power cut, and what is not survives in part, as disks do it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import pytest

from support.power import PowerCutError
from support.simulator.disk import STEPS, DiskPlan, Disks, SimDisk

OLD, NEW = b"o" * 16384, b"n" * 16384
CUTS = 60


class Bench:
    """A disk with one file, whose contents and name are durable."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        root.mkdir(parents=True)
        self.file = root / "file"
        self.file.write_bytes(OLD)
        self.disk = SimDisk(root, Random(seed))

    def write(self, data: bytes, *, sync: bool = False) -> None:
        fd = os.open(self.file, os.O_RDWR)
        try:
            os.pwrite(fd, data, 0)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)


@pytest.fixture
def disks() -> Iterator[Disks]:
    disks = Disks()
    patches = [mock.patch.object(os, name, disks.through(name, getattr(os, name))) for name in STEPS]
    for patch in patches:
        patch.start()
    yield disks
    for patch in patches:
        patch.stop()


def after_cuts(disks: Disks, place: Path, *, sync: bool) -> set[bytes]:
    found = set()
    for seed in range(CUTS):
        bench = Bench(place / str(seed) / "d", seed)
        with disks.on(bench.disk):
            bench.write(NEW, sync=sync)
        bench.disk.cut_power()
        found.add(bench.file.read_bytes())
        bench.disk.close()
    return found


def test_what_was_synced_survives_every_cut(disks: Disks, tmp_path: Path) -> None:
    assert after_cuts(disks, tmp_path, sync=True) == {NEW}


def test_what_was_not_synced_is_lost_kept_or_torn_at_sectors_and_blocks(disks: Disks, tmp_path: Path) -> None:
    found = after_cuts(disks, tmp_path, sync=False)
    assert {OLD, NEW} < found
    for data in found:
        assert all(data[at : at + 512] in {b"o" * 512, b"n" * 512} for at in range(0, len(data), 512))
    blocks = {b"o" * 4096, b"n" * 4096}
    assert any(data[at : at + 4096] not in blocks for data in found for at in range(0, len(data), 4096))


def test_a_killed_process_leaves_what_it_wrote_and_a_later_cut_takes_it(disks: Disks, tmp_path: Path) -> None:
    found = set()
    for seed in range(CUTS):
        bench = Bench(tmp_path / str(seed) / "d", seed)
        with disks.on(bench.disk):
            bench.write(NEW)
        bench.disk.kill()
        assert bench.file.read_bytes() == NEW
        bench.disk.cut_power()
        found.add(bench.file.read_bytes())
        bench.disk.close()
    assert OLD in found


def test_a_name_is_durable_only_after_its_folder_was_synced(disks: Disks, tmp_path: Path) -> None:
    there = {False: set(), True: set()}  # type: dict[bool, set[bool]]
    for seed in range(CUTS):
        for sync in (False, True):
            bench = Bench(tmp_path / f"{seed}-{sync}" / "d", seed)
            with disks.on(bench.disk):
                bench.file.rename(bench.file.with_name("other"))
                if sync:
                    fd = os.open(bench.disk.root, os.O_RDONLY)
                    os.fsync(fd)
                    os.close(fd)
            bench.disk.cut_power()
            found = [path.read_bytes() for path in bench.disk.root.iterdir()]
            assert found == [OLD] * len(found)
            assert found, "a rename lost a file that was durable"
            there[sync].add(bench.file.with_name("other").exists())
            bench.disk.close()
    assert there == {False: {False, True}, True: {True}}


def test_after_a_failed_sync_only_what_is_written_again_becomes_durable(disks: Disks, tmp_path: Path) -> None:
    for again, expected in ((False, {OLD}), (True, {NEW})):
        bench = Bench(tmp_path / str(again) / "d")
        with disks.on(bench.disk):
            bench.disk.begin(DiskPlan(error_at=1))
            with pytest.raises(OSError, match="Input/output") as caught:
                bench.write(NEW, sync=True)
            assert caught.value.errno == errno.EIO
            if again:
                bench.write(NEW, sync=True)
            else:
                fd = os.open(bench.file, os.O_RDWR)
                os.fsync(fd)
                os.close(fd)
        bench.disk.cut_power()
        assert {bench.file.read_bytes()} == expected
        bench.disk.close()


def test_nothing_is_done_after_the_step_at_which_the_process_ends(disks: Disks, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "d")
    with disks.on(bench.disk):
        bench.disk.begin(DiskPlan(cut_at=1))
        bench.write(NEW)
        for _ in range(2):
            with pytest.raises(PowerCutError):
                bench.write(OLD)
    assert bench.file.read_bytes() == NEW
    bench.disk.close()
