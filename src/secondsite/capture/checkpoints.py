"""libvirt's checkpoints of ours: adopted, dropped, and cleared away when they are broken.

A checkpoint is metadata in libvirt plus one bitmap in each disk. libvirt deletes both only while the machine runs; of one
that is shut off the metadata go through libvirt and the bitmaps through qemu-img.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import libvirt

from secondsite.capture.bitmaps import image_info, our_bitmaps, remove_bitmap
from secondsite.capture.live_bitmaps import LiveBitmaps
from secondsite.capture.machine import Machine, is_active, libvirt_errors
from secondsite.capture.port import check_checkpoint_name, is_ours
from secondsite.errors import ConflictError, TrackingLostError, UnavailableError
from secondsite.model.ids import DiskKey

_BITMAP_IS_MISSING: Final = frozenset(
    {libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT}
)
"""What deleting a checkpoint raises when QEMU does not know its bitmap: then only the metadata are left to delete."""


def _now() -> datetime:
    return datetime.now(UTC)


def adopt_checkpoint(machine: Machine, name: str, now: Callable[[], datetime] = _now) -> None:
    """Tell libvirt of bitmaps called `name` that the disks carry already, so that a snapshot may begin `since` it.

    Works on a machine that is shut off or runs. One that libvirt knows already is kept. Disks that keep no bitmaps are
    none of its business; without any other there is nothing to tell.

    Raises:
        TrackingLostError: a running machine's disk has no such bitmap.
    """
    check_checkpoint_name(name)
    domain = machine.domain()
    if not any(disk.keeps_bitmaps for disk in machine.disks(domain).values()):
        return
    if find_checkpoint(domain, name) is not None:
        return
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "creationTime").text = str(int(now().timestamp()))
    with libvirt_errors(f"cannot list the checkpoints of {machine.name}"):
        leaves = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_LEAVES)
    if leaves:
        ET.SubElement(ET.SubElement(root, "parent"), "name").text = leaves[-1].getName()
    root.append(disks_element(machine, domain, name))
    root.append(ET.fromstring(machine.definition(domain).text))  # noqa: S314
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
    if is_active(domain):
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    with libvirt_errors(f"cannot adopt checkpoint {name}"):
        domain.checkpointCreateXML(ET.tostring(root, encoding="unicode"), flags)


def disks_element(machine: Machine, domain: Any, bitmap: str | None = None) -> ET.Element:
    """Return the <disks> of a checkpoint over those of our disks that keep bitmaps, and of none of the others."""
    element = ET.Element("disks")
    for key, found in machine.disks(domain).items():
        disk = ET.SubElement(element, "disk", name=key, checkpoint="bitmap" if found.keeps_bitmaps else "no")
        if bitmap is not None and found.keeps_bitmaps:
            disk.set("bitmap", bitmap)
    for other in machine.other_disks(domain):
        ET.SubElement(element, "disk", name=other, checkpoint="no")
    return element


def find_checkpoint(domain: Any, name: str) -> Any | None:
    """Return libvirt's checkpoint, or None."""
    try:
        return domain.checkpointLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            return None
        with libvirt_errors(f"cannot look up checkpoint {name}"):
            raise


def require_checkpoint(domain: Any, name: str, keys: Collection[DiskKey]) -> None:
    """Raise TrackingLostError unless libvirt has a checkpoint `name` over at least these disks."""
    checkpoint = find_checkpoint(domain, name)
    if checkpoint is None:
        raise TrackingLostError(f"checkpoint {name} does not exist", checkpoint=name)
    with libvirt_errors(f"cannot read checkpoint {name}"):
        root = ET.fromstring(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))  # noqa: S314
    tracked = {disk.get("name") for disk in root.iterfind("disks/disk") if disk.get("checkpoint") == "bitmap"}
    missing = sorted(set(keys) - tracked)
    if missing:
        raise TrackingLostError(f"checkpoint {name} does not track disk {missing[0]}", checkpoint=name)


def forget_checkpoints(machine: Machine, keep: Collection[str], *, images: bool = True) -> None:
    """Drop all checkpoints and bitmaps of ours but those in `keep`, broken or not, whether the machine runs or not.

    images: whether the images of a machine that is off may be written; another host may use them.
    """
    domain = machine.domain()
    active = is_active(domain)
    if not active and images:
        # First, so that a machine that starts meanwhile still has the metadata to delete the rest by.
        for disk in machine.present_disks(domain):
            if disk.keeps_bitmaps:
                _remove_bitmaps(disk.path, keep)
    elif active and any(not disk.keeps_bitmaps for disk in machine.present_disks(domain)):
        LiveBitmaps(domain).forget(keep)
    with libvirt_errors(f"cannot list the checkpoints of {machine.name}"):
        # Parents first: the oldest has nothing to merge its bitmap into, so deleting it costs least.
        checkpoints = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    for checkpoint in checkpoints:
        if is_ours(checkpoint.getName()) and checkpoint.getName() not in keep:
            _delete(checkpoint, active=active)
    if active and not keep:
        LiveBitmaps(domain).forget_orphans()


def _delete(checkpoint: Any, *, active: bool) -> None:
    name = checkpoint.getName()
    metadata_only = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    with libvirt_errors(f"cannot delete checkpoint {name}"):
        if not active:
            checkpoint.delete(metadata_only)
            return
        try:
            checkpoint.delete(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return
            if error.get_error_code() not in _BITMAP_IS_MISSING:
                raise
            checkpoint.delete(metadata_only)


def _remove_bitmaps(path: Path, keep: Collection[str]) -> None:
    try:
        for name in our_bitmaps(image_info(path)):
            if name not in keep:
                remove_bitmap(path, name)
    except ConflictError as error:
        raise UnavailableError(f"the machine was started meanwhile: {error.message}") from error
