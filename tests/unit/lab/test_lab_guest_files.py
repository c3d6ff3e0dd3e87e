"""The guest's parts that need no hypervisor: initramfs, disk layout, definition."""

from __future__ import annotations

import subprocess
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree as ET

import pytest

from secondsite.errors import CorruptError, InvalidInputError
from secondsite.lab.guest import initramfs
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.layout import LABEL_OFFSET, RECORDS_OFFSET, Layout

MIB = 1 << 20
FILES = GuestFiles(Path("/boot/vmlinuz"), Path("/boot/initrd"))


def test_the_archive_is_what_cpio_unpacks(tmp_path: Path) -> None:
    entries = {
        "bin": initramfs.folder(),
        "bin/tool": initramfs.program(b"abc"),
        "bin/name": initramfs.link("tool"),
        "init": initramfs.program(b"#!/bin/sh\n" * 1000),
    }
    archive = initramfs.archive(entries)
    assert archive == initramfs.archive(entries)
    subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/name").readlink() == Path("tool")
    assert (tmp_path / "bin/name").read_bytes() == b"abc"
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n" * 1000
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755


def test_a_label_says_what_the_layout_was() -> None:
    layout = Layout.of_size(64 * MIB, disk=1, disks=2, seed=7, record_area=2 * MIB)
    assert Layout.parse(layout.label()) == layout
    assert layout.file_system_offset == RECORDS_OFFSET + 2 * MIB
    assert layout.file_system_offset + layout.file_system_length == 64 * MIB
    assert len(layout.boot_sector()) == 512 < LABEL_OFFSET


@pytest.mark.parametrize("place", [0, 8, 16, 24, 40, 64, 71])
def test_a_damaged_label_is_refused(place: int) -> None:
    label = bytearray(Layout.of_size(64 * MIB, disk=0, disks=1, seed=7, record_area=2 * MIB).label())
    label[place] ^= 4
    with pytest.raises(CorruptError):
        Layout.parse(bytes(label))


@pytest.mark.parametrize(("size", "record_area"), [(8 * MIB, 2 * MIB), (64 * MIB, 100), (64 * MIB, 0)])
def test_a_disk_without_room_is_refused(size: int, record_area: int) -> None:
    with pytest.raises(InvalidInputError):
        Layout.of_size(size, disk=0, disks=1, seed=7, record_area=record_area)


def test_the_definition_names_no_file_that_two_sites_would_share_for_writing() -> None:
    uuid = uuid4()
    text = domain_xml(
        "g", FILES, [Path("/d/g-vda.qcow2"), Path("/d/g-vdb.raw")], networks=["lab-prod"], uuid=uuid
    )
    domain = ET.fromstring(text)
    assert domain.get("type") == "qemu"
    assert domain.findtext("uuid") == str(uuid)
    assert [source.get("file") for source in domain.iter("source") if source.get("file")] == [
        "/d/g-vda.qcow2",
        "/d/g-vdb.raw",
    ]
    assert [driver.get("type") for driver in domain.iter("driver")] == ["qcow2", "raw"]
    assert [target.get("dev") for target in domain.iterfind("devices/disk/target")] == ["vda", "vdb"]
    assert domain.find("devices/interface/source[@network='lab-prod']") is not None
    assert list(domain.iter("log")) == []
    assert list(domain.iter("channel")) == []


def test_the_definition_carries_the_workload_settings() -> None:
    command_line = ET.fromstring(domain_xml("g", FILES, [], rate=7, churn=0, check=True)).findtext(
        "os/cmdline"
    )
    assert command_line is not None
    assert {"ss.rate=7", "ss.churn=0", "ss.check=1"} <= set(command_line.split())
