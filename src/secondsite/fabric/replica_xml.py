"""From the source's definition to the replica's: a pure transformation of libvirt domain XML.

What stays is the hardware that the guest sees: machine type, processor, memory, controllers, addresses, disks'
targets and serials, interfaces with their MAC addresses. What goes is what belongs to the source's host: paths,
ports, listen addresses, security labels, pinning to processors, cgroup partitions. What the replica cannot have is
refused with a hint (`UnsupportedError`), never dropped in silence if the guest would miss it.

What it does not carry: VNC and SPICE passwords (a definition is read without secrets; so the console listens only
where the target's own configuration says), UEFI variables, TPM state (the inventory warns of both).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from secondsite.errors import InvalidInputError, UnsupportedError
from secondsite.fabric.domain_xml import (
    check_name,
    child,
    definition_root,
    devices,
    disk_elements,
    drop,
    is_lock_disk,
    ours,
)
from secondsite.fabric.host_xml import Exists, forget_host, free_devices, set_boot
from secondsite.fabric.inventory import Labels, ReplicaRole
from secondsite.fabric.port import DiskSource, ReplicaSpec
from secondsite.fabric.replica_nics import connect_interfaces
from secondsite.model.ids import DiskKey


@dataclass(frozen=True, slots=True)
class TargetHost:
    """What the target can run: machine types by (architecture, domain type), from libvirt's capabilities."""

    machines: Mapping[tuple[str, str], Collection[str]]

    @classmethod
    def from_capabilities(cls, text: str) -> TargetHost:
        """Read libvirt's capabilities document."""
        machines: dict[tuple[str, str], set[str]] = {}
        for arch in _capabilities(text).iterfind("guest/arch"):
            shared = _machines(arch)
            for domain in arch.iterfind("domain"):
                own = _machines(domain)
                machines.setdefault((arch.get("name", ""), domain.get("type", "")), set()).update(
                    own or shared
                )
        return cls(machines)


def _capabilities(text: str) -> ET.Element:
    if "<!DOCTYPE" in text:
        raise InvalidInputError("the capabilities have a document type")
    return ET.fromstring(text)  # noqa: S314 - from the local libvirt, and without a document type


def _machines(element: ET.Element) -> set[str]:
    return {
        name
        for machine in element.findall("machine")
        for name in (machine.text, machine.get("canonical"))
        if name
    }


def replica_xml(
    spec: ReplicaSpec, host: TargetHost, *, exists: Exists, uuid: str, keep_mac: Callable[[str], bool]
) -> ET.Element:
    """Return the replica's domain.

    Args:
        spec: what to define.
        host: what the target can run.
        exists: whether a path exists on the target.
        uuid: the replica's if it gets a new identity.
        keep_mac: whether an interface on this target network may keep the source's MAC address.

    Raises:
        UnsupportedError: the target cannot run this, or the machine holds something that cannot move.
        InvalidInputError: the definition is malformed, or a named disk is not in it.
    """
    root = definition_root(spec.definition)
    name = root.findtext("name", "")
    _refuse(root)
    _choose_type(root, host, allow_emulation=spec.allow_emulation)
    _identify(root, spec, uuid, name)
    set_boot(root, exists)
    forget_host(root)
    _replace_disks(root, spec.disks, exists)
    connect_interfaces(devices(root), spec.networks, keep_mac)
    free_devices(root)
    _label(root, spec.labels)
    return root


# -- what cannot move ----------------------------------------------------------------------------------------

_IMMOVABLE: Final = {
    "devices/hostdev": "a device of its host",
    "devices/interface[@type='hostdev']": "a network device of its host",
    "devices/tpm/backend[@type='passthrough']": "its host's TPM",
    "devices/memory[@model='nvdimm']": "non-volatile memory, which is not replicated",
    "devices/shmem": "memory shared with its host",
    "launchSecurity": "memory encrypted by its host's processor",
}


def _refuse(root: ET.Element) -> None:
    for path, what in _IMMOVABLE.items():
        if root.find(path) is not None:
            raise UnsupportedError(
                f"the machine uses {what}",
                hint="remove it on the source, and replicate until a new point has it",
            )


def _choose_type(root: ET.Element, host: TargetHost, *, allow_emulation: bool) -> None:
    kind = root.get("type", "")
    element = root.find("os/type")
    arch = "x86_64" if element is None else element.get("arch", "x86_64")
    if (arch, kind) not in host.machines:
        if kind != "kvm" or (arch, "qemu") not in host.machines:
            known = ", ".join(sorted(f"{name} by {how}" for name, how in host.machines)) or "nothing"
            raise UnsupportedError(
                f"this host does not run {arch} machines of type {kind!r}", hint=f"it runs {known}"
            )
        if not allow_emulation:
            raise UnsupportedError(
                "the machine needs KVM, which this host does not offer",
                hint="enable virtualisation in the host's firmware and load the kvm module, or allow emulation",
            )
        _emulate(root)
        kind = "qemu"
    machine = None if element is None else element.get("machine")
    known_machines = host.machines[arch, kind]
    if machine is not None and known_machines and machine not in known_machines:
        raise UnsupportedError(
            f"this host's QEMU does not know the machine type {machine}",
            hint="install a QEMU at least as new as the source's, or give the source an older machine type",
            machine=machine,
        )


def _emulate(root: ET.Element) -> None:
    """Drop what only KVM offers."""
    root.set("type", "qemu")
    drop(root, "cpu")
    for tag in ("hyperv", "kvm", "pvspinlock", "pmu", "ioapic"):
        drop(root, f"features/{tag}")
    for timer in ("kvmclock", "hypervclock", "tsc"):
        drop(root, f"clock/timer[@name='{timer}']")


# -- identity ------------------------------------------------------------------------------------------------


def _identify(root: ET.Element, spec: ReplicaSpec, uuid: str, source_name: str) -> None:
    child(root, "name", first=True).text = check_name(spec.name)
    if spec.new_identity:
        child(root, "uuid").text = uuid
        # libvirt refuses a machine whose SMBIOS identity differs from its own.
        for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):
            entry.text = uuid
    if spec.labels.role is ReplicaRole.TEST:
        child(root, "title").text = f"{source_name} (test failover of Second Site)"
    # The guest goes back in time: a new generation tells it so (domain controllers need it); libvirt makes one up.
    genid = root.find("genid")
    if genid is not None:
        genid.text = None


def _label(root: ET.Element, labels: Labels) -> None:
    """Drop what the source's side kept in our metadata, and write whose machine this is."""
    machine = ours(root, create=True)
    assert machine is not None
    for old in list(machine):
        machine.remove(old)
    ET.SubElement(
        machine, "labels", {"item": labels.item, "epoch": str(labels.epoch), "role": labels.role.value}
    )


# -- disks ---------------------------------------------------------------------------------------------------


def _replace_disks(root: ET.Element, sources: Mapping[DiskKey, DiskSource], exists: Exists) -> None:
    parent = devices(root)
    left = dict(sources)
    for disk in parent.findall("disk"):
        if is_lock_disk(disk):
            parent.remove(disk)
    for key, disk in list(disk_elements(root)):
        source = left.pop(key, None)
        if source is not None:
            _put_overlay(disk, source)
        elif disk.get("device") in {"cdrom", "floppy"}:
            _eject_missing(disk, exists)
        else:
            parent.remove(disk)
    if left:
        raise InvalidInputError(
            f"the machine's definition has no disk {', '.join(sorted(left))}",
            hint="the point's disks and its definition do not belong together",
        )


_HOST_TAGS: Final = (
    "source",
    "backingStore",
    "mirror",
    "auth",
    "encryption",
    "backenddomain",
    "transient",
    "reservations",
    "alias",
)


def _put_overlay(disk: ET.Element, source: DiskSource) -> None:
    """The measured recipe: the backing is written out, and the guest pauses rather than sees an error while a view is away."""
    disk.set("type", "file")
    disk.set("device", "disk")
    for attribute in ("rawio", "sgio", "model"):
        disk.attrib.pop(attribute, None)
    for tag in _HOST_TAGS:
        drop(disk, tag)
    driver = child(disk, "driver", first=True)
    # `io` depends on what the target's kernel and file system offer; QEMU's default works everywhere.
    driver.attrib.pop("io", None)
    driver.attrib.update(name="qemu", type="qcow2", error_policy="stop", rerror_policy="stop")
    place = list(disk).index(driver) + 1
    disk.insert(place, ET.Element("source", {"file": str(source.overlay)}))
    disk.insert(place + 1, backing_element(source))


def backing_element(source: DiskSource) -> ET.Element:
    """Return the <backingStore> of a replica's disk; an empty one says that there is none, so libvirt probes nothing."""
    if source.backing is None:
        return ET.Element("backingStore")
    backing = ET.Element("backingStore", {"type": "network"})
    ET.SubElement(backing, "format", {"type": "raw"})
    network = ET.SubElement(backing, "source", {"protocol": "nbd", "name": source.backing.export})
    ET.SubElement(network, "host", {"transport": "unix", "socket": str(source.backing.socket)})
    ET.SubElement(backing, "backingStore")
    return backing


def _eject_missing(disk: ET.Element, exists: Exists) -> None:
    source = disk.find("source")
    path = None if source is None else source.get("file")
    if source is not None and (disk.get("type") != "file" or path is None or not exists(path)):
        disk.remove(source)
        disk.set("type", "file")
        drop(disk, "backingStore")
    elif source is not None:
        drop(source, "seclabel")
        source.attrib.pop("index", None)
