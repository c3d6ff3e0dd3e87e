"""Machines with disks and no operating system, written to as their guest would: for tests of capture.

A running one is started paused, so that it costs no processor; QEMU writes for it through its disk's own device, which is
the way that a guest's writes take. A shut-off one is written through qemu-io, which keeps its bitmaps as QEMU does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import libvirt
import libvirt_qemu

from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey


class TrackedMachine:
    """A domain with disks; its images lie in `folder`, and `scratch` is a folder there that QEMU may write to.

    formats: "qcow2" (the default), "raw", or "block": a raw block device, which is a loop device; only root can make one,
        so for others it is a raw file.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        folder: Path,
        name: str,
        disks: Mapping[DiskKey, int],
        more_devices: str = "",
        options: str = "compat=1.1",
        formats: Mapping[DiskKey, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.kinds = {key: (formats or {}).get(key, "qcow2") for key in disks}
        self.images: dict[DiskKey, Path] = {}
        self._loops: list[Path] = []
        for key, size in disks.items():
            if self.kinds[key] == "qcow2":
                image = folder / f"{name}-{key}.qcow2"
                _run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(image), str(size))
            else:
                image = folder / f"{name}-{key}.raw"
                with image.open("wb") as file:
                    file.truncate(size)
            if self.kinds[key] == "block" and not has_loop_devices():
                self.kinds[key] = "raw"
            if self.kinds[key] == "block":
                image = Path(_run("losetup", "--find", "--show", str(image)).strip())
                self._loops.append(image)
            self.images[key] = image
            hypervisor.own(image)
        self.scratch = folder / "s"
        self.scratch.mkdir(exist_ok=True)
        hypervisor.own(self.scratch)
        self.connection = hypervisor.connect()
        self.domain = self.connection.defineXML(self._xml(more_devices))

    def _xml(self, more_devices: str) -> str:
        disks = "".join(self._disk_xml(key, path) for key, path in self.images.items())
        return f"""<domain type='qemu'><name>{self.name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='q35'>hvm</type></os>
        <devices>{disks}{more_devices}<memballoon model='none'/></devices></domain>"""

    def _disk_xml(self, key: DiskKey, path: Path) -> str:
        block = self.kinds[key] == "block"
        kind, attribute = ("block", "dev") if block else ("file", "file")
        return f"""<disk type='{kind}' device='disk'>
            <driver name='qemu' type='{self.format_of(key)}' discard='unmap'/><source {attribute}='{path}'/>
            <target dev='{key}' bus='virtio'/><alias name='ua-{key}'/></disk>"""

    def format_of(self, key: DiskKey) -> str:
        """The format of the disk's image: an administrator may have put an overlay on it."""
        return "qcow2" if self.images[key].suffix == ".qcow2" else "raw"

    def reconnect(self, hypervisor: Hypervisor) -> None:
        """Find the machine again after libvirtd was started anew."""
        self.connection = hypervisor.connect()
        self.domain = self.connection.lookupByName(self.name)

    # -- power -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, paused."""
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def stop(self) -> None:
        """Shut it off as a clean shutdown ends: QEMU closes its images."""
        if self.domain.isActive():
            self.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def remove(self) -> None:
        """Shut it off and forget it."""
        try:
            self.stop()
            self.domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            )
        finally:
            self.detach()

    def detach(self) -> None:
        """Give its loop devices back."""
        while self._loops:
            _run("losetup", "--detach", str(self._loops.pop()))

    # -- what its guest does -----------------------------------------------------------------------------------

    def write(self, disk: DiskKey, offset: int, data: bytes) -> None:
        """Write runs of equal bytes: `data` must be made of one value."""
        value, length = data[0], len(data)
        assert data == bytes([value]) * length
        if value:
            self.io(disk, f"write -P {value} {offset} {length}")
        else:
            self.io(disk, f"write -z {offset} {length}")

    def io(self, disk: DiskKey, *commands: str) -> None:
        """Run commands of qemu-io on the disk."""
        if self.domain.isActive():
            device = f"/machine/peripheral/ua-{disk}/virtio-backend"
            for command in commands:
                said = libvirt_qemu.qemuMonitorCommand(
                    self.domain,
                    f'qemu-io -d {device} "{command}"',
                    libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
                )
                assert "rror" not in said, said
            return
        arguments = [argument for command in commands for argument in ("-c", command)]
        _run("qemu-io", "-f", self.format_of(disk), *arguments, str(self.images[disk]))

    def content(self, disk: DiskKey, folder: Path) -> bytes:
        """Return what a shut-off machine's disk holds, read by somebody else than us."""
        raw = folder / f"{disk}.raw"
        form = self.format_of(disk)
        _run("qemu-img", "convert", "-U", "-f", form, "-O", "raw", str(self.images[disk]), str(raw))
        return raw.read_bytes()


@cache
def has_loop_devices() -> bool:
    """Whether block devices can be made: by root, and not in every container. Without, they are raw files."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode == 0


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stdout, done.stdout
    return done.stdout
