"""What a libvirt host has: machines, their disks' sizes, networks. Reading only.

One bulk call gives the sizes of all disks of all machines without waiting for any of them, so that a machine whose
monitor is busy (a backup job that ends, a guest agent that connects) does not hold up the inventory; for such a one
the sizes seen last are reported. A listing of 100 machines is about 200 local round trips of well below 1 ms.
"""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import libvirt

from secondsite.errors import NotFoundError, SecondSiteError
from secondsite.fabric.connection import Connection
from secondsite.fabric.disk_xml import read_disk
from secondsite.fabric.domain_xml import (
    agent_connected,
    disk_elements,
    machine_problems,
    parse_domain,
    read_kept,
    read_labels,
    read_nics,
)
from secondsite.fabric.images import image_info
from secondsite.fabric.inventory import (
    DiskInfo,
    HostInfo,
    Inventory,
    NetworkInfo,
    PowerState,
    Problem,
    ProblemCode,
    VmInfo,
)
from secondsite.model.units import SECTOR

_POWER: Final[Mapping[int, PowerState]] = {
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.STOPPING,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
}

Sizes = Mapping[str, int]
"""Virtual sizes in bytes by target device."""


def power_state(domain: Any) -> tuple[PowerState, bool]:
    """Return a domain's power state, and whether it is paused by an I/O error."""
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_CRASHED and not domain.isActive():
        return PowerState.OFF, False
    power = _POWER.get(state, PowerState.OFF)
    return power, power is PowerState.PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR


def inactive_xml(domain: Any) -> str:
    """Return the definition that the domain starts from next time, without secrets."""
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def secure_xml(domain: Any) -> str:
    """Return the same with console passwords: what is changed and defined again starts from it, or they are lost."""
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))


class InventoryReader:
    """See the module's docstring. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._last_sizes: dict[str, dict[str, int]] = {}

    def inventory(self) -> Inventory:
        """See `Fabric.inventory`."""
        with self._connection.use("list machines") as connection:
            domains = connection.listAllDomains()
            sizes = self._sizes(connection, domains)
            vms = [vm for domain in domains if (vm := self._machine(domain, sizes)) is not None]
            networks = [network_info(network) for network in connection.listAllNetworks()]
            host = _host(connection)
        with self._lock:
            known = {vm.uuid for vm in vms}
            self._last_sizes = {uuid: old for uuid, old in self._last_sizes.items() if uuid in known}
        return Inventory(
            host=host,
            vms=tuple(sorted(vms, key=lambda vm: (vm.name, vm.uuid))),
            networks=tuple(sorted(networks, key=lambda network: network.name)),
        )

    def find(self, vm: str) -> VmInfo:
        """See `Fabric.find`."""
        with self._connection.domain(vm, "look at") as domain:
            found = self._machine(domain, self._sizes(domain.connect(), [domain]))
        if found is None:
            raise NotFoundError(f"no machine {vm!r}", hint="it was removed just now", vm=vm)
        return found

    def _sizes(self, connection: Any, domains: list[Any]) -> dict[str, dict[str, int]]:
        with self._connection.unlisted.listing() as unlisted:
            listed = [domain for domain in domains if domain.UUIDString() not in unlisted]
            if not listed:
                return {}  # libvirt would take no machine for all of them
            return _sizes_by_machine(
                connection.domainListGetStats(
                    listed, libvirt.VIR_DOMAIN_STATS_BLOCK, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
                )
            )

    def _machine(self, domain: Any, sizes: Mapping[str, Sizes]) -> VmInfo | None:
        """Return one machine, None if it is gone meanwhile; what cannot be read becomes a problem of it."""
        try:
            uuid, name = domain.UUIDString(), domain.name()
            power, io_error = power_state(domain)
            persistent = bool(domain.isPersistent())
            inactive = inactive_xml(domain)
            live = domain.XMLDesc(0) if power.active else inactive
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        vm = VmInfo(uuid=uuid, name=name, power=power, io_error=io_error, disks=(), nics=())
        try:
            return self._describe(
                vm, parse_domain(inactive), parse_domain(live), sizes, persistent=persistent
            )
        except SecondSiteError as error:
            problem = Problem(
                ProblemCode.UNREADABLE,
                f"the machine's definition cannot be read: {error.message}",
                error.hint or "virsh dumpxml shows it",
            )
            return replace(vm, problems=(problem,))

    def _describe(
        self,
        vm: VmInfo,
        inactive: ET.Element,
        live: ET.Element,
        sizes: Mapping[str, Sizes],
        *,
        persistent: bool,
    ) -> VmInfo:
        found = self._known_sizes(vm, sizes.get(vm.uuid, {}))
        disks = tuple(
            self._sized(vm, _disk(vm, read_disk(key, element, found.get(key, 0))))
            for key, element in disk_elements(live)
        )
        problems = machine_problems(inactive, disks)
        if not persistent:
            gone = Problem(
                ProblemCode.TRANSIENT,
                "the machine is transient: it vanishes when it stops",
                "define it: virsh dumpxml NAME > vm.xml; virsh define vm.xml",
            )
            problems = (gone, *problems)
        lock = read_kept(inactive, "lock")
        return replace(
            vm,
            disks=disks,
            nics=read_nics(inactive),
            problems=problems,
            labels=read_labels(inactive),
            locked=None if lock is None else lock.reason,
            agent=vm.power.active and agent_connected(live),
        )

    def _sized(self, vm: VmInfo, disk: DiskInfo) -> DiskInfo:
        """Ask the image for a size that a machine which is just starting, and was never seen before, does not tell."""
        if disk.size or disk.path is None or disk.format != "qcow2" or not vm.power.active:
            return disk
        try:
            size = image_info(disk.path).size
        except SecondSiteError:
            return disk
        with self._lock:
            self._last_sizes.setdefault(vm.uuid, {})[disk.key] = size
        return replace(disk, size=size)

    def _known_sizes(self, vm: VmInfo, now: Sizes) -> Sizes:
        """Complete the sizes of a machine that is too busy to tell them by those it told last."""
        with self._lock:
            known = self._last_sizes.setdefault(vm.uuid, {})
            if vm.power is PowerState.OFF:
                known.clear()
            known.update(now)
            return dict(known)


def _disk(vm: VmInfo, disk: DiskInfo) -> DiskInfo:
    """A machine that is off tells the size of every image that can be opened; so one without a size is missing."""
    if disk.device == "disk" and disk.size % SECTOR:
        problem = Problem(
            ProblemCode.DISK_SIZE,
            f"{disk.key} has {disk.size} bytes, which is no multiple of {SECTOR}",
            "shut the machine down and bring the image to whole sectors: truncate -s %512 IMAGE",
        )
        return replace(disk, problems=(*disk.problems, problem))
    if disk.size or disk.device != "disk" or vm.power.active or disk.path is None:
        return disk
    problem = Problem(
        ProblemCode.DISK_MISSING,
        f"the image {disk.path} of {disk.key} cannot be opened",
        "mount its storage, or remove the disk from the machine",
    )
    return replace(disk, problems=(*disk.problems, problem))


def _sizes_by_machine(stats: list[tuple[Any, dict[str, Any]]]) -> dict[str, dict[str, int]]:
    return {
        domain.UUIDString(): {
            figures[f"block.{number}.name"]: int(figures[f"block.{number}.capacity"])
            for number in range(figures.get("block.count", 0))
            # An empty drive, and an image that cannot be opened, have no capacity.
            if f"block.{number}.capacity" in figures and f"block.{number}.name" in figures
        }
        for domain, figures in stats
    }


def network_info(network: Any) -> NetworkInfo:
    """Return what a libvirt network is."""
    text = network.XMLDesc(0)
    isolated = "<!DOCTYPE" not in text and ET.fromstring(text).find("forward") is None  # noqa: S314 - libvirt's own
    return NetworkInfo(name=network.name(), isolated=isolated, active=bool(network.isActive()))


def _host(connection: Any) -> HostInfo:
    info = connection.getInfo()
    version = connection.getVersion()
    return HostInfo(
        name=connection.getHostname(),
        hypervisor=connection.getType(),
        version=f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}",
        cpus=info[2],
        memory=info[1] << 20,
    )
