"""A machine, its hypervisor and a folder, as tests of capture use them."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import libvirt

from secondsite.capture.libvirt import LibvirtCapture
from secondsite.capture.port import Capture
from secondsite.capture.select import capture_for
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey
from support.patience import wait_until
from support.replicas import Replica
from support.tracked_machines import TrackedMachine


@dataclass
class Site:
    """See the module's docstring. `keys` are the disks that are protected."""

    hypervisor: Hypervisor
    machine: TrackedMachine
    folder: Path
    keys: Collection[DiskKey]

    @property
    def scratch(self) -> Path:
        return self.machine.scratch

    def capture(self) -> Capture:
        return capture_for(self.hypervisor.uri, self.machine.name, self.keys, self.scratch)

    def running(self) -> LibvirtCapture:
        return LibvirtCapture(self.hypervisor.uri, self.machine.name, self.keys, self.scratch)

    def kill(self) -> None:
        """kill -9 of the machine's QEMU; returns when libvirt has noticed."""
        (guest,) = [
            process
            for process in self.hypervisor.guests()
            if any(f"guest={self.machine.name}," in word for word in process.command_line)
        ]
        os.kill(guest.pid, signal.SIGKILL)
        wait_until(lambda: not self.machine.domain.isActive())


def assert_same(site: Site, replica: Replica) -> None:
    """The shut-off machine's disks are what the replica holds."""
    for key, image in replica.images.items():
        assert site.machine.content(key, site.folder) == image, key


def snapshot_disk_only(site: Site, keys: Collection[DiskKey]) -> dict[DiskKey, Path]:
    """Take an external snapshot as an administrator does: the guest goes on in overlays. Returns what is below."""
    machine, token = site.machine, secrets.token_hex(3)
    overlays = {key: site.folder / f"over-{token}-{key}.qcow2" for key in keys}
    disks = "".join(f"<disk name='{key}'><source file='{path}'/></disk>" for key, path in overlays.items())
    disks += "".join(f"<disk name='{key}' snapshot='no'/>" for key in machine.images if key not in keys)
    site.hypervisor.own(site.folder)
    machine.domain.snapshotCreateXML(
        f"<domainsnapshot><name>admin</name><disks>{disks}</disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )
    below = dict(machine.images)
    machine.images = {**below, **overlays}
    return below


def commit_back(site: Site, below: Mapping[DiskKey, Path]) -> None:
    """Merge the overlays of `snapshot_disk_only` back into what is below, and go on there."""
    domain, machine = site.machine.domain, site.machine
    for key in below:
        if machine.images[key] == below[key]:
            continue
        domain.blockCommit(key, None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        wait_until(lambda key=key: _pivots(domain, key))
        wait_until(lambda key=key: not domain.blockJobInfo(key))
    machine.images = dict(below)


def _pivots(domain: libvirt.virDomain, key: DiskKey) -> bool:
    try:
        domain.blockJobAbort(key, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
            return False  # not yet the same
        raise
    return True


def has_no_job(domain: libvirt.virDomain) -> bool:
    """Whether no backup job runs."""
    try:
        domain.backupGetXMLDesc(0)
    except libvirt.libvirtError:
        return True
    return False
