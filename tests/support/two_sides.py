"""Two sides of an item that have gone apart: written to, looked at and compared by judges of their own."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import numpy as np

from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey, ItemId
from support.node_pair import POLICY, PairNode, wait_until

MIB = 1 << 20
SIZE = 64 * MIB
VDA, VDB = DiskKey("vda"), DiskKey("vdb")
PLAIN = replace(POLICY, compression=False, retention_points=2)


def last_point(node: PairNode, item: ItemId) -> int:
    if not node.daemon.journals.exists(item):
        return 0
    points = node.daemon.journals.get(item).points()
    return points[-1].sequence if points else 0


def next_point(source: PairNode, target: PairNode, item: ItemId) -> int:
    """Wait for a point that was begun after this call."""
    before = last_point(target, item)
    source.daemon.replicators.wake(item)
    wait_until(lambda: last_point(target, item) > before + 1, what="two points")
    return last_point(target, item)


def replica_io(hypervisor: Hypervisor, name: str, disk: DiskKey, command: str) -> None:
    """Have a running machine's QEMU do something with its disk, as its guest would (a command of qemu-io)."""
    connection = hypervisor.connect()
    try:
        domain = connection.lookupByName(name)
        (alias,) = (
            found.find("alias").get("name")  # type: ignore[union-attr]
            for found in ET.fromstring(domain.XMLDesc()).iterfind("devices/disk")
            if found.find("target").get("dev") == disk  # type: ignore[union-attr]
        )
        said = libvirt_qemu.qemuMonitorCommand(
            domain,
            f'qemu-io -d /machine/peripheral/{alias}/virtio-backend "{command}"',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
        )
        assert "rror" not in said, said
    finally:
        connection.close()


def replica_write(
    hypervisor: Hypervisor, name: str, disk: DiskKey, offset: int, length: int, fill: int
) -> None:
    """Write to the disk of a running machine."""
    replica_io(hypervisor, name, disk, f"write -P {fill} {offset} {length}")


def contents(node: PairNode, item: ItemId, sequence: int) -> dict[DiskKey, bytes]:
    with node.daemon.journals.get(item).view(sequence, purpose="test", verify=True) as view:
        return {disk: bytes(held.read(0, held.size)) for disk, held in view.disks.items()}


def differing(one: dict[DiskKey, bytes], other: dict[DiskKey, bytes]) -> int:
    """Bytes of the 4 KiB blocks that differ."""
    count = 0
    for disk, held in one.items():
        left, right = (np.frombuffer(data, np.uint8).reshape(-1, 4096) for data in (held, other[disk]))
        count += int((left != right).any(axis=1).sum()) * 4096
    return count


def equals_image(held: bytes, image: Path, folder: Path) -> bool:
    """Compare by a judge that shares no code with us."""
    raw = folder / "held.raw"
    raw.write_bytes(held)
    compare = ["qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", str(raw), str(image)]
    return subprocess.run(compare, capture_output=True, timeout=120).returncode == 0


def reverse(active: PairNode, standby: PairNode, item: ItemId, epoch: int, after: int) -> dict[str, Any]:
    active.call("target.commit", item, epoch)
    answer = standby.call(
        "target.adopt",
        item,
        epoch,
        {"source_node": active.daemon.config.node, "policy": asdict(PLAIN), "after": after},
    )
    active.call(
        "source.start", item, epoch, {"resume": True, "target": standby.target, "policy": asdict(PLAIN)}
    )
    return dict(answer)


def destroy(hypervisor: Hypervisor, name: str) -> None:
    """Remove a machine, whatever became of it."""
    connection = hypervisor.connect()
    try:
        for domain in connection.listAllDomains():
            if domain.name() == name:
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    finally:
        connection.close()
