"""Reading a disk in libvirt domain XML: where its image is, what it is, and what stands in the way of its replication. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from secondsite.fabric.inventory import DiskInfo, Problem, ProblemCode
from secondsite.model.ids import DiskKey


def image_path(disk: ET.Element) -> Path | None:
    """Return the file or block device that the guest writes; None for an empty drive or a disk elsewhere."""
    source = disk.find("source")
    attribute = {"file": "file", "block": "dev"}.get(disk.get("type", ""))
    path = source.get(attribute) if source is not None and attribute is not None else None
    return Path(path) if path else None


def has_backing(disk: ET.Element) -> bool:
    """Whether the disk's definition names a backing image (an empty <backingStore/> ends a chain)."""
    backing = disk.find("backingStore")
    return backing is not None and backing.find("source") is not None


def read_disk(key: DiskKey, disk: ET.Element, size: int) -> DiskInfo:
    """Return what the XML says of a disk; its size comes from the caller."""
    driver = disk.find("driver")
    target = disk.find("target")
    form = "raw" if driver is None else driver.get("type", "raw")
    return DiskInfo(
        key=key,
        path=image_path(disk),
        format=form,
        size=size,
        bus="" if target is None else target.get("bus", ""),
        device=disk.get("device", "disk"),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        problems=tuple(_disk_problems(key, disk, form)),
    )


def _disk_problems(key: DiskKey, disk: ET.Element, form: str) -> Iterator[Problem]:
    device = disk.get("device", "disk")
    if device != "disk":
        yield Problem(
            ProblemCode.DISK_REMOVABLE, f"{key} is a {device}", "it stays on the replica as an empty drive"
        )
        return
    if disk.find("readonly") is not None:
        yield Problem(ProblemCode.DISK_READONLY, f"{key} is read-only", "copy it to the other site by hand")
    if disk.find("shareable") is not None:
        yield Problem(
            ProblemCode.DISK_SHAREABLE, f"{key} is shared between machines", "replicate it by other means"
        )
    if disk.find("encryption") is not None or disk.find("source/encryption") is not None:
        yield Problem(
            ProblemCode.DISK_ENCRYPTED, f"{key} is encrypted by QEMU", "encrypt inside the guest instead"
        )
    kind = disk.get("type")
    if kind not in {"file", "block"}:
        yield Problem(
            ProblemCode.DISK_NOT_A_FILE,
            f"{key} is of type {kind}",
            "files and block devices are replicated: move it with virsh blockcopy",
        )
    elif form not in {"qcow2", "raw"} or (kind == "block" and form != "raw"):
        where = " on a block device" if kind == "block" else ""
        yield Problem(
            ProblemCode.DISK_FORMAT,
            f"{key} has the format {form}{where}",
            "qcow2 files, raw files and raw block devices are replicated: convert it with qemu-img convert",
        )
    elif disk.find("source/slices") is not None:
        yield Problem(
            ProblemCode.DISK_FORMAT,
            f"{key} is a slice of its image",
            "give it an image of its own: virsh blockcopy",
        )
    elif form == "raw":
        yield Problem(
            ProblemCode.DISK_COMPARED,
            f"{key} is raw, which keeps no track of changes over a restart of the machine",
            "after each start the whole disk is read and compared once, in the resync window; qcow2 avoids that",
            forbids=False,
        )
