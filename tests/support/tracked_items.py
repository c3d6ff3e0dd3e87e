"""Machines without an operating system, protected by two real nodes: for byte-exact stories that need no guest.

What a machine's guest would write is written by its QEMU, on whichever side it runs.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from secondsite.errors import SecondSiteError
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey, ItemId
from support.node_pair import POLICY, NodePair, PairNode, wait_until
from support.tracked_machines import TrackedMachine


def hmp_write(domain: libvirt.virDomain, disk: str, *commands: str) -> None:
    """Run commands of qemu-io on a disk of a running machine whose disks have libvirt's own aliases."""
    device = f"/machine/peripheral/virtio-disk{ord(disk[2]) - ord('a')}/virtio-backend"
    for command in commands:
        said = libvirt_qemu.qemuMonitorCommand(
            domain, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        assert "rror" not in said, said


def points_of(node: PairNode, item: ItemId) -> list[int]:
    """The sequences of the recovery points that the node holds."""
    if not node.daemon.journals.exists(item):
        return []
    return [point.sequence for point in node.daemon.journals.get(item).points()]


def next_point(source: PairNode, target: PairNode, item: ItemId) -> int:
    """Have a cycle run that begins after this call, and return its point."""
    seen = points_of(target, item)[-1:]
    replicator = source.daemon.replicators.find(item)
    assert replicator is not None
    # The cycle that runs may have begun before: wait for the second.
    for _ in range(2):
        before = points_of(target, item)[-1:] or [0]
        replicator.wake()
        wait_until(
            lambda before=before: (points_of(target, item)[-1:] or [0]) > before,
            what=f"a point after {seen}; last error {replicator.error}",
        )
    return points_of(target, item)[-1]


def point_content(node: PairNode, item: ItemId, sequence: int) -> dict[DiskKey, bytes]:
    """Every byte of a point's disks."""
    content = {}
    with node.daemon.journals.get(item).view(sequence, purpose="test", verify=True) as view:
        for key, disk in view.disks.items():
            data = bytearray(disk.size)
            disk.readinto(0, memoryview(data))
            content[key] = bytes(data)
    return content


def machine_content(domain: libvirt.virDomain, folder: Path) -> dict[DiskKey, bytes]:
    """Every byte of a shut-off machine's disks, read by somebody else than us."""
    content = {}
    for disk in ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).iterfind("devices/disk"):
        source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
        assert source is not None
        assert driver is not None
        assert target is not None
        path = source.get("file") or source.get("dev")
        if path is None or "LOCKED" in path:
            continue
        raw = folder / "content.raw"
        command = ["qemu-img", "convert", "-U", "-f", str(driver.get("type")), "-O", "raw", path, str(raw)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        content[DiskKey(str(target.get("dev")))] = raw.read_bytes()
        raw.unlink()
    return content


def fail_over(source: PairNode, target: PairNode, item: ItemId, name: str, epoch: int) -> dict[str, Any]:
    """Planned: the machine goes to `target` with nothing lost."""
    prepared = source.call("source.prepare", item, epoch, {"shutdown_timeout_s": 1})
    where = {"sequence": prepared["sequence"], "digest": prepared["digest"], "name": name, "networks": {}}
    started = target.call("target.failover", item, epoch, {**where, "new_epoch": epoch + 1})
    source.call("source.demote", item, epoch, {"new_epoch": epoch + 1})
    return {**prepared, **started}


def reverse(active: PairNode, standby: PairNode, item: ItemId, epoch: int) -> Mapping[str, Any]:
    """Commit, and replicate the other way."""
    policy = asdict(POLICY)
    active.call("target.commit", item, epoch)
    adopted = standby.call(
        "target.adopt", item, epoch, {"source_node": active.daemon.config.node, "policy": policy}
    )
    active.call("source.start", item, epoch, {"resume": True, "target": standby.target, "policy": policy})
    return adopted


def disable(nodes: NodePair, source: PairNode, target: PairNode, item: ItemId, epoch: int) -> None:
    """Forget the item on both sides; the machine stays."""
    source.call("source.stop", item, epoch)
    target.call("target.remove", item, epoch, {"delete_replica": False})


def remove_domains(*hypervisors: Hypervisor, prefix: str) -> None:
    """End and forget the machines of a test on each side."""
    for hypervisor in hypervisors:
        for domain in hypervisor.connect().listAllDomains():
            if domain.name().startswith(prefix):
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(
                    libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                )


def protect(nodes: NodePair, machine: TrackedMachine, *disks: DiskKey) -> ItemId:
    """Protect these disks, and wait for the first point."""
    sizes = {disk: machine.domain.blockInfo(disk)[0] for disk in disks or machine.images}
    item = nodes.protect(machine.domain.UUIDString(), sizes)
    wait_until(lambda: points_of(nodes.recovery, item), what="the first point")
    return item


def error_of(nodes: NodePair, item: ItemId, code: str) -> SecondSiteError:
    """Have cycles run until one fails with this code, and return its error."""
    replicator = nodes.primary.daemon.replicators.find(item)
    assert replicator is not None
    replicator.wake()
    return wait_until(
        lambda: error if (error := replicator.error) is not None and error.code == code else None,
        what=f"the error {code}",
    )


def newest_is_the_machine(nodes: NodePair, item: ItemId, machine: TrackedMachine, folder: Path) -> None:
    """Shut the machine off, and compare every byte of its protected disks with a point made then."""
    machine.stop()
    sequence = next_point(nodes.primary, nodes.recovery, item)
    point = point_content(nodes.recovery, item, sequence)
    disks = machine_content(machine.domain, folder)
    assert point == {key: disks[key] for key in point}
