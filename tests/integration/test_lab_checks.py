"""Disks of the lab's guest before any guest ran: they are cheap, and damage to their file system is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.errors import InvalidInputError, UnavailableError
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.guest.layout import BLOCK, LABEL_OFFSET, Layout
from secondsite.lab.images import region_copy
from secondsite.lab.records import check_records
from secondsite.lab.tools import run

pytestmark = pytest.mark.integration
MIB = 1 << 20


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_new_disks_hold_no_record_and_a_clean_file_system(tmp_path: Path, image_format: str) -> None:
    disks = create_disks(tmp_path, "g", size=64 * MIB, image_format=image_format, record_area=MIB)
    assert [path.name for path in disks] == [f"g-vda.{image_format}", f"g-vdb.{image_format}"]
    assert sorted(tmp_path.iterdir()) == disks
    found = check_records(disks)
    assert (found.last, found.last_time, found.records, found.ok) == (0, None, (0, 0), True)
    for image in disks:
        checked = check_filesystem(image)
        assert (checked.ok, checked.needed_recovery, checked.files) == (True, False, 0)


def test_a_huge_thin_disk_costs_next_to_nothing(tmp_path: Path) -> None:
    (image,) = create_disks(tmp_path, "huge", count=1, size=500 << 30)
    assert '"virtual-size": 536870912000' in run(["qemu-img", "info", "--output=json", str(image)]).stdout
    assert image.stat().st_blocks * 512 < 64 * MIB


def test_an_existing_disk_is_not_overwritten(tmp_path: Path) -> None:
    (image,) = create_disks(tmp_path, "g", count=1, size=64 * MIB, record_area=MIB)
    before = image.read_bytes()
    with pytest.raises(InvalidInputError, match="exists"):
        create_disks(tmp_path, "g", count=1, size=64 * MIB, record_area=MIB)
    assert image.read_bytes() == before


def test_a_damaged_file_system_is_found(tmp_path: Path) -> None:
    (image,) = create_disks(tmp_path, "g", count=1, size=64 * MIB, record_area=MIB, image_format="raw")
    with image.open("r+b") as disk:
        disk.seek(LABEL_OFFSET)
        start = Layout.parse(disk.read(BLOCK)).file_system_offset
        # The group descriptors: their checksums no longer fit.
        disk.seek(start + BLOCK)
        disk.write(b"\x5a" * 64)
    assert not check_filesystem(image).ok


def test_a_file_with_other_content_than_it_says_is_found(tmp_path: Path) -> None:
    (image,) = create_disks(tmp_path, "g", count=1, size=64 * MIB, record_area=MIB, image_format="raw")
    layout = Layout.of_size(64 * MIB, disk=0, disks=1, seed=0, record_area=MIB)
    torn = tmp_path / "torn"
    torn.write_bytes(bytes(4096))
    with region_copy(image, layout.file_system_offset, layout.file_system_length) as region:
        run(["debugfs", "-w", "-R", "mkdir churn", str(region)])
        run(["debugfs", "-w", "-R", f"write {torn} churn/file-03", str(region)])
        content = region.read_bytes()
    with image.open("r+b") as disk:
        disk.seek(layout.file_system_offset)
        disk.write(content)
    checked = check_filesystem(image)
    assert checked.problems == ("file-03 is not what was written",)
    assert checked.files == 1


def test_a_missing_image_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    with pytest.raises((UnavailableError, FileNotFoundError)):
        check_records([tmp_path / "absent.qcow2"])
