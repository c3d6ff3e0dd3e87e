"""Freeing a domain's XML of what belongs to the host it came from. Pure: XML in, XML out.

Paths, ports, listen addresses, security labels, pinning, cgroups and character devices that end in the host go, and
the target's libvirt chooses its own. What the guest would miss is refused with a hint instead.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Final

from secondsite.errors import UnsupportedError
from secondsite.fabric.domain_xml import devices, drop

Exists = Callable[[str], bool]
"""Whether a path exists on the target's host."""


# -- boot ----------------------------------------------------------------------------------------------------


def set_boot(root: ET.Element, exists: Exists) -> None:
    """Check that what the machine boots from is on the target; firmware that libvirt can choose is left to it."""
    boot = root.find("os")
    if boot is None:
        return
    for tag in ("kernel", "initrd", "dtb"):
        path = boot.findtext(tag)
        if path and not exists(path):
            raise UnsupportedError(
                f"the machine boots the {tag} {path}, which is missing on this host",
                hint="copy it to the same path here, or let the machine boot from its disk",
                path=path,
            )
    loader = boot.find("loader")
    if loader is not None and loader.text and not exists(loader.text):
        if boot.get("firmware") is None:
            raise UnsupportedError(
                f"the machine's firmware {loader.text} is missing on this host",
                hint="install it (the package ovmf on Debian), or set <os firmware='efi'> on the source",
                path=loader.text,
            )
        boot.remove(loader)  # libvirt chooses one by <os firmware=...>
        for secure in boot.findall("firmware"):
            boot.remove(secure)
    for nvram in boot.findall("nvram"):
        # The path is the source's; without it libvirt makes a fresh one from the template.
        template = nvram.get("template")
        if template and exists(template):
            nvram.text = None
            for attribute in ("type", "format"):
                nvram.attrib.pop(attribute, None)
            drop(nvram, "source")
        else:
            boot.remove(nvram)


# -- what belongs to the host --------------------------------------------------------------------------------


def forget_host(root: ET.Element) -> None:
    """Drop what names parts of the source's host, and devices that end in it."""
    for path in (
        "seclabel",
        "resource",
        "numatune",
        "memoryBacking/hugepages",
        "cputune/vcpupin",
        "cputune/emulatorpin",
        "cputune/iothreadpin",
        "cputune/vcpusched",
        "cputune/iothreadsched",
        "cputune/emulatorsched",
        "cputune/cachetune",
        "cputune/memorytune",
        "devices/emulator",
        "devices/filesystem",
        "devices/lease",
        "devices/input[@type='passthrough']",
        "devices/input[@type='evdev']",
        "devices/smartcard",
        "devices/redirdev[@type='tcp']",
        "devices/rng/backend[@model='egd']/..",
    ):
        drop(root, path)
    root.attrib.pop("id", None)
    vcpu = root.find("vcpu")
    if vcpu is not None:
        for attribute in ("cpuset", "placement"):
            vcpu.attrib.pop(attribute, None)
    for cid in root.iterfind("devices/vsock/cid[@auto='yes']"):
        cid.attrib.pop("address", None)


_ENDLESS: Final = frozenset({"pty", "null", "vc", "spicevmc", "spiceport", "qemu-vdagent"})
"""Character devices that need nothing of the host's."""


def free_devices(root: ET.Element) -> None:
    """Let the target's libvirt choose paths, ports and addresses."""
    for tag in ("serial", "parallel", "console"):
        for device in root.iterfind(f"devices/{tag}"):
            if device.get("type") not in _ENDLESS:
                device.set("type", "pty")
            device.attrib.pop("tty", None)
            for child in ("source", "protocol", "log"):
                drop(device, child)
    for channel in root.findall("devices/channel"):
        if channel.get("type") == "unix":
            drop(channel, "source")
            drop(channel, "log")
        elif channel.get("type") not in _ENDLESS:
            devices(root).remove(channel)
    for graphics in root.iterfind("devices/graphics"):
        _free_graphics(graphics)
    for device in root.iterfind("devices/*"):
        alias = device.find("alias")
        if alias is not None and not alias.get("name", "").startswith("ua-"):
            device.remove(alias)


def _free_graphics(graphics: ET.Element) -> None:
    for attribute in ("port", "tlsPort", "websocket", "listen", "socket", "passwd", "passwdValidTo"):
        graphics.attrib.pop(attribute, None)
    if graphics.get("type") in {"vnc", "spice"}:
        graphics.set("autoport", "yes")
    drop(graphics, "listen")
    for gl in graphics.findall("gl"):
        gl.attrib.pop("rendernode", None)
