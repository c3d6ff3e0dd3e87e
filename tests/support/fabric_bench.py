"""A hypervisor, its fabric, and what a test plays around them: views that come and go, and tiny machines without a system."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import libvirt

from secondsite.fabric.libvirt import LibvirtFabric
from secondsite.fabric.libvirt_power import Waiting
from secondsite.fabric.port import (
    LIBVIRT_FORMAT,
    DiskSource,
    Labels,
    NbdBacking,
    ReplicaRole,
    ReplicaSpec,
    VmDefinition,
    VmInfo,
)
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey, Epoch, ItemId

MIB = 1 << 20
VDA = DiskKey("vda")
LABELS = Labels(ItemId("11111111-2222-3333-4444-555555555555"), Epoch(2), ReplicaRole.REPLICA)
TINY = """
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='user'><model type='virtio'/></interface>
<graphics type='vnc' passwd='geheim'/><memballoon model='none'/></devices></domain>
"""


class View:
    """A read-only NBD server of an image, as the process that serves a journal's view is."""

    def __init__(self, folder: Path, image: Path, image_format: str = "raw") -> None:
        self.backing = NbdBacking(folder / f"{uuid4().hex[:6]}.sock", "vda")
        self._pid_file = self.backing.socket.with_suffix(".pid")
        command = ["qemu-nbd", "--fork", "-r", "-t", "-e", "8", "-f", image_format, "-x", self.backing.export]
        self._command = [*command, "-k", self.backing.socket, "--pid-file", self._pid_file, image]
        self.pid = 0

    def start(self) -> View:
        self.backing.socket.unlink(missing_ok=True)
        subprocess.run(self._command, check=True)
        self.backing.socket.chmod(0o777)
        self.pid = int(self._pid_file.read_text())
        return self

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0


class Bench:
    """A hypervisor, its fabric, and machines and views that are cleaned up."""

    def __init__(self, hypervisor: Hypervisor, folder: Path) -> None:
        self.hypervisor = hypervisor
        self.fabric = LibvirtFabric(hypervisor.uri, keepalive_interval_s=1, keepalive_count=2)
        self.folder = folder
        self.views: list[View] = []
        self.names: list[str] = []
        folder.chmod(0o755)

    def name(self) -> str:
        self.names.append(f"fl-{uuid4().hex[:8]}")
        return self.names[-1]

    def domain(self, vm: str) -> libvirt.virDomain:
        return self.hypervisor.connect().lookupByName(vm)

    def tiny(self) -> str:
        """Define a machine with one disk and start nothing; return its name."""
        name = self.name()
        image = self.hypervisor.storage / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
        self.hypervisor.own(image)
        self.hypervisor.connect().defineXML(TINY.format(name=name, uuid=uuid4(), image=image))
        return name

    def view(self, image: Path | None = None, image_format: str = "raw") -> View:
        if image is None:
            image = self.folder / f"{uuid4().hex[:6]}.raw"
            image.write_bytes(os.urandom(48 * MIB) + bytes(16 * MIB))
        view = View(self.folder, image, image_format).start()
        self.views.append(view)
        return view

    def spec(self, view: View, text: str | None = None, size: int = 64 * MIB) -> ReplicaSpec:
        name = self.name()
        overlay = self.hypervisor.storage / f"{name}-overlay.qcow2"
        self.fabric.create_overlay(overlay, size=size, backing=view.backing, bitmap="start")
        definition = text or TINY.format(name=name, uuid=uuid4(), image="/elsewhere.qcow2")
        disks = {VDA: DiskSource(overlay, view.backing)}
        return ReplicaSpec(name, VmDefinition(LIBVIRT_FORMAT, definition), disks, {}, LABELS)

    def replica(self, view: View) -> VmInfo:
        return self.fabric.define_replica(self.spec(view))

    def close(self) -> None:
        for name in self.names:
            try:
                self.fabric.power_off(name)
            except Exception:
                continue
            self.fabric.undefine(name, keep_disks=False)
        self.fabric.close()
        for view in self.views:
            view.kill()


def eventually(holds: Callable[[], bool]) -> None:
    assert Waiting().until(holds, 60)
