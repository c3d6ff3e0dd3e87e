"""Definitions that carry an older definition with them: the lock on an old primary, and what a failback displaced.
Pure: XML in, XML out.

The lock is a disk whose image is never there: libvirt refuses to start the machine, in system and session mode,
without hooks, and its error names the path, which tells the reason:

    Cannot access storage file '/LOCKED-by-Second-Site/failed over; unlock with secondsite ...': No such file

The definition without the lock is kept as text in our metadata, so that unlocking gives it back to the letter. Tried
on libvirt 9.0: a domain with checkpoints may be redefined so, also while it runs; checkpoints and bitmaps stay.

Rejected: undefining it (the operator no longer sees it, and checkpoints go), another path for the real disks (tools
that look for them would be led astray), a kernel that is not there (QEMU's error, after libvirt has touched images).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from secondsite.errors import InvalidInputError
from secondsite.fabric.domain_xml import (
    LOCK_FOLDER,
    Kept,
    child,
    devices,
    disk_elements,
    is_lock_disk,
    ours,
    parse_domain,
    read_kept,
    to_text,
    write_kept,
)

_BUSES = (("virtio", "vd"), ("scsi", "sd"), ("sata", "sd"), ("usb", "sd"))
_TITLE_MARK = "locked by Second Site"


def locked_xmls(text: str, *, reason: str, autostart: bool, secure_text: str | None = None) -> Iterator[str]:
    """Yield candidates for the locked definition; the first that libvirt accepts is used.

    `text` is the present definition without secrets, `secure_text` the same with them: what is kept in metadata has
    none, because everyone who may look at a machine may read it; the locked definition itself keeps them.

    They differ in the bus of the added disk: not every machine has room on every bus. A definition that is locked
    already keeps what its first lock kept; only the reason changes.
    """
    old = read_kept(parse_domain(text), "lock")
    kept = Kept(text, autostart, reason) if old is None else Kept(old.text, old.autostart, reason)
    for bus, prefix in _BUSES:
        root = parse_domain(with_secrets(kept.text, secure_text))
        _add_lock_disk(root, reason, bus, prefix)
        name = root.findtext("name", "")
        title = child(root, "title")
        title.text = f"{name} ({reason}, {_TITLE_MARK})".replace("\n", " ")
        write_kept(root, "lock", kept)
        yield to_text(root)


def unlocked_xml(text: str, *, secure_text: str | None = None) -> Kept | None:
    """Return the definition that the lock replaced, with the secrets of `secure_text`; None if there is no lock."""
    kept = read_kept(parse_domain(text), "lock")
    if kept is None:
        return None
    return Kept(with_secrets(kept.text, secure_text), kept.autostart, kept.reason)


def with_secrets(text: str, secure_text: str | None) -> str:
    """Return `text` with the console passwords of another definition of the same machine, by position."""
    if secure_text is None:
        return text
    root, secure = parse_domain(text), parse_domain(secure_text)
    changed = False
    for graphics, theirs in zip(
        root.iterfind("devices/graphics"), secure.iterfind("devices/graphics"), strict=False
    ):
        if graphics.get("type") == theirs.get("type"):
            for name in ("passwd", "passwdValidTo", "connected"):
                value = theirs.get(name)
                if value is not None and graphics.get(name) is None:
                    graphics.set(name, value)
                    changed = True
    return to_text(root) if changed else text


def displacing_xml(root: ET.Element, displaced: Kept) -> None:
    """Let a replica's definition carry the locked machine of the same identity that it takes the place of."""
    write_kept(root, "displaced", displaced)


def displaced_by(text: str) -> Kept | None:
    """Return the machine that this definition took the place of."""
    return read_kept(parse_domain(text), "displaced")


def definition_text(text: str) -> str:
    """Return what a machine is by itself: without a lock, and without the machine that it displaced."""
    lock = read_kept(parse_domain(text), "lock")
    if lock is not None:
        text = lock.text
    if displaced_by(text) is not None:
        root = parse_domain(text)
        write_kept(root, "displaced", None)
        text = to_text(root)
    return text


def standalone_xml(text: str) -> str:
    """Return the definition with no disk on a backing, and without the machine that it displaced."""
    root = parse_domain(text)
    for _key, disk in disk_elements(root):
        for backing in disk.findall("backingStore"):
            place = list(disk).index(backing)
            disk.remove(backing)
            if disk.get("device", "disk") == "disk":
                disk.insert(place, ET.Element("backingStore"))
    if ours(root) is not None:
        write_kept(root, "displaced", None)
    return to_text(root)


def _add_lock_disk(root: ET.Element, reason: str, bus: str, prefix: str) -> None:
    for disk in devices(root).findall("disk"):
        if is_lock_disk(disk):
            devices(root).remove(disk)
    used = {key for key, _disk in disk_elements(root)}
    name = next(
        (name for letter in "zyxwvutsrqponmlkjihgfedcba" if (name := prefix + letter) not in used), None
    )
    if name is None:
        raise InvalidInputError("the machine has no free disk name for a lock")
    telling = re.sub(r"[^A-Za-z0-9 .,;:()_-]", "-", reason).strip()[:200] or "locked"
    disk = ET.SubElement(devices(root), "disk", {"type": "file", "device": "disk"})
    ET.SubElement(disk, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(disk, "source", {"file": f"{LOCK_FOLDER}/{telling}"})
    ET.SubElement(disk, "target", {"dev": name, "bus": bus})
    ET.SubElement(disk, "readonly")
