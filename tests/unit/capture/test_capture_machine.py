"""What capture makes of a machine's XML, without a hypervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt
import pytest

from secondsite.capture.live_bitmaps import node_of
from secondsite.capture.machine import DiskGoneError, Machine, MachineDisk, translated
from secondsite.errors import UnavailableError, UnsupportedError
from secondsite.model.ids import DiskKey

VDA, VDB = DiskKey("vda"), DiskKey("vdb")


class Domain:
    """A libvirt domain with one disk."""

    def __init__(self, disk: str) -> None:
        self._disk = disk

    def XMLDesc(self, flags: int = 0) -> str:
        return f"<domain><devices>{self._disk}</devices></domain>"


def disk(
    kind: str = "file", form: str = "raw", source: str = "<source file='/i/a' index='7'/>", more: str = ""
) -> str:
    return (
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='{form}'/>{source}{more}"
        "<target dev='vda' bus='virtio'/></disk>"
    )


def read(text: str, key: DiskKey = VDA) -> MachineDisk:
    found: dict[DiskKey, Any] = Machine("test:///", "m", [key]).disks(Domain(text))
    return found[key]  # type: ignore[no-any-return]


def test_a_raw_file_a_device_and_a_qcow2_file_are_told_apart() -> None:
    raw = read(disk())
    assert (raw.path, raw.format, raw.index, raw.keeps_bitmaps) == (Path("/i/a"), "raw", 7, False)
    device = read(disk("block", source="<source dev='/dev/vg/lv' index='3'/>"))
    assert (device.path, device.keeps_bitmaps) == (Path("/dev/vg/lv"), False)
    assert read(disk(form="qcow2")).keeps_bitmaps


def test_the_node_of_the_active_layer_is_named_by_its_index() -> None:
    chain = "<source file='/i/over' index='9'/>"
    below = "<backingStore type='file'><format type='raw'/><source file='/i/a' index='2'/></backingStore>"
    assert node_of(read(disk(source=chain, more=below))) == "libvirt-9-format"
    with pytest.raises(UnavailableError):
        node_of(read(disk(source="<source file='/i/a'/>")))  # off, or a libvirt that does not say


@pytest.mark.parametrize(
    "text",
    [
        disk(form="vmdk"),
        disk("block", "qcow2", "<source dev='/dev/x'/>"),
        disk("network", source="<source protocol='rbd' name='a/b'/>"),
        disk(source="<source file='/i/a'><encryption format='luks'/></source>"),
        disk(
            source="<source file='/i/a'><slices><slice type='storage' offset='1' size='2'/></slices></source>"
        ),
        disk().replace("device='disk'", "device='cdrom'"),
    ],
    ids=["format", "qcow2 on a device", "network", "encrypted", "slice", "cdrom"],
)
def test_what_cannot_be_read_the_same_on_and_off_is_refused_by_name(text: str) -> None:
    with pytest.raises(UnsupportedError, match="vda") as refused:
        read(text)
    assert refused.value.hint


def test_a_disk_that_is_gone_is_named_with_the_way_out() -> None:
    with pytest.raises(DiskGoneError, match="vdb") as gone:
        read(disk(), VDB)
    assert "attach it again" in gone.value.hint


def test_a_machine_that_libvirt_does_not_take_up_again_says_what_to_restart() -> None:
    lock = libvirt.libvirtError("")
    lock.err = (
        68,
        10,
        "cannot acquire state change lock (held by monitor=init-web)",
        2,
        "",
        None,
        None,
        -1,
        -1,
    )
    error = translated(lock, "cannot begin a snapshot of web")
    assert isinstance(error, UnavailableError)
    assert "restart libvirtd" in error.hint
