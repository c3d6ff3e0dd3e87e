"""The libvirt definition of a lab guest.

It names no file but the disks, the kernel and the initrd, so the same text serves on both sites of one machine: the
serial console is a pty that each hypervisor makes anew (read it with `secondsite.lab.console`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import UUID
from xml.etree import ElementTree as ET

from secondsite.lab.guest.builder import GuestFiles

_WITHOUT: Final = (
    # What an emulated processor does slowly and this guest does not need: half a second of its boot.
    "nokaslr mitigations=off cryptomgr.notests no_timer_check noreplace-smp lsm= raid=noautodetect ipv6.disable=1"
)


def domain_xml(
    name: str,
    files: GuestFiles,
    disks: Sequence[Path],
    *,
    rate: int = 200,
    churn: int = 4,
    check: bool = False,
    say: bool = False,
    follow: bool = False,
    networks: Sequence[str] = (),
    memory_mib: int = 256,
    serial_log: Path | None = None,
    agent: bool = False,
    cache: str = "none",
    uuid: UUID | None = None,
) -> str:
    """Return the definition of a guest that writes `rate` records and `churn` files a second at most.

    `check`: write nothing, judge the disks and print it. `say`: print each record's number once it is stable. `follow`: write
    a record only once its number (or a higher one) came in a line on the console. `serial_log`: a file that gets all console output, also of
    the time when nobody reads; leave it out where the definition is to run on two sites of one machine. `agent`: a
    channel for the guest agent. `cache`: QEMU's mode; "none" needs a file system with O_DIRECT below the disks.
    """
    domain = ET.Element(
        "domain", type="qemu"
    )  # never kvm: it does not work on every machine that runs the lab
    _add(domain, "name", name)
    if uuid is not None:
        _add(domain, "uuid", str(uuid))
    _add(domain, "memory", str(memory_mib), unit="MiB")
    _add(domain, "vcpu", "1")
    boot = _add(domain, "os")
    _add(boot, "type", "hvm", arch="x86_64", machine="pc")
    _add(boot, "kernel", str(files.kernel))
    _add(boot, "initrd", str(files.initrd))
    settings = (
        f"ss.rate={rate} ss.churn={churn} ss.check={int(check)} ss.say={int(say)} ss.follow={int(follow)}"
    )
    _add(boot, "cmdline", f"console=ttyS0 quiet {_WITHOUT} {settings}")
    _add(_add(domain, "features"), "acpi")  # without it there is no power button
    _add(domain, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _add(domain, event, action)
    devices = _add(domain, "devices")
    for number, image in enumerate(disks):
        _add_disk(devices, number, image, cache)
    for network in networks:
        interface = _add(devices, "interface", type="network")
        _add(interface, "source", network=network)
        _add(interface, "model", type="virtio")
    for tag in ("serial", "console"):
        port = _add(devices, tag, type="pty")
        if serial_log is not None:
            _add(port, "log", file=str(serial_log), append="on")
        if tag == "console":
            _add(port, "target", type="serial", port="0")
    if agent:
        channel = _add(devices, "channel", type="unix")
        _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(devices, "memballoon", model="none")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _add_disk(devices: ET.Element, number: int, image: Path, cache: str) -> None:
    disk = _add(devices, "disk", type="file", device="disk")
    _add(
        disk,
        "driver",
        name="qemu",
        type="raw" if image.suffix == ".raw" else "qcow2",
        cache=cache,
        discard="unmap",
    )
    _add(disk, "source", file=str(image))
    _add(disk, "target", dev=f"vd{chr(ord('a') + number)}", bus="virtio")


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element
