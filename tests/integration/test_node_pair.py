"""A guest's life over two nodes: replicated, tested, failed over, reversed, failed back. No service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import libvirt
import pytest

from secondsite.errors import NotFoundError, SecondSiteError
from secondsite.lab.console import ConsoleReader
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.records import check_records
from secondsite.model.ids import ItemId
from secondsite.node.records import Role
from support.guests import built_guest, running_guest
from support.hypervisors import HypervisorPair
from support.node_pair import POLICY, NodePair, PairNode, node_pair, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SIZE = 128 << 20
DISKS = {"vda": SIZE, "vdb": SIZE}


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair


def points_of(node: PairNode, item: ItemId) -> list[int]:
    if not node.daemon.journals.exists(item):
        return []
    return [point.sequence for point in node.daemon.journals.get(item).points()]


def extract(node: PairNode, item: ItemId, sequence: int, folder: Path) -> list[Path]:
    """Copy a point's disks out of a view."""
    paths = []
    with node.daemon.journals.get(item).view(sequence, purpose="test", verify=True) as view:
        for key, disk in view.disks.items():
            path = folder / f"{key}-{sequence}.raw"
            with path.open("wb") as file:
                file.truncate(disk.size)
                for extent in disk.extents(0, disk.size):
                    if not extent.zero:
                        data = bytearray(extent.length)
                        disk.readinto(extent.offset, memoryview(data))
                        file.seek(extent.offset)
                        file.write(data)
            paths.append(path)
    return paths


def images_of(node: PairNode, vm: str) -> list[Path]:
    return [disk.path for disk in node.daemon.fabric.find(vm).disks if disk.path is not None]


def stand_alone_copies_equal(
    nodes: NodePair, item: ItemId, sequence: int, disks: list[Path], folder: Path
) -> None:
    """Extract a point with the stand-alone command and compare every byte with the disks as they were then."""
    journal = nodes.recovery.daemon.journals.get(item).path
    command = [sys.executable, "-m", "secondsite", "journal", "extract", str(journal)]
    subprocess.run([*command, "--sequence", str(sequence), "--output", str(folder)], check=True, timeout=60)
    for disk, key in zip(disks, DISKS, strict=True):
        compare = [
            "qemu-img",
            "compare",
            "-U",
            "-f",
            "raw",
            "-F",
            "qcow2",
            str(folder / f"{key}.raw"),
            str(disk),
        ]
        assert subprocess.run(compare, capture_output=True, timeout=60).returncode == 0, key


def fail_over(source: PairNode, target: PairNode, item: ItemId, name: str, epoch: int) -> dict[str, object]:
    prepared = source.call("source.prepare", item, epoch, {"shutdown_timeout_s": 30})
    started = target.call(
        "target.failover",
        item,
        epoch,
        {
            "sequence": prepared["sequence"],
            "digest": prepared["digest"],
            "new_epoch": epoch + 1,
            "name": name,
            "networks": {},
        },
    )
    source.call("source.demote", item, epoch, {"new_epoch": epoch + 1})
    return {**prepared, **started}


def reverse(active: PairNode, standby: PairNode, item: ItemId, epoch: int) -> None:
    active.call("target.commit", item, epoch)
    standby.call(
        "target.adopt", item, epoch, {"source_node": active.daemon.config.node, "policy": asdict(POLICY)}
    )
    active.call(
        "source.start", item, epoch, {"resume": True, "target": standby.target, "policy": asdict(POLICY)}
    )


def test_a_guest_is_tested_goes_there_and_comes_back(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    files = built_guest(short_path)
    with running_guest(hypervisor_pair.primary, files, "pair-a", size=SIZE) as guest:
        assert guest.console is not None
        item = nodes.protect("pair-a", DISKS)
        wait_until(lambda: len(points_of(nodes.recovery, item)) >= 3, what="three points")

        # Each point is one moment over both disks.
        for sequence in points_of(nodes.recovery, item)[:3]:
            found = check_records(extract(nodes.recovery, item, sequence, short_path))
            assert found.ok, found.problems

        # A test failover: a machine of its own, replication goes on, nothing is left behind.
        before = points_of(nodes.recovery, item)[-1]
        test = nodes.recovery.call(
            "target.test_start", item, 1, {"sequence": None, "name": "pair-a-test", "networks": {}}
        )
        with ConsoleReader(hypervisor_pair.recovery, "pair-a-test") as console:
            assert console.wait_for(r"SS-AT n=(\d+)", 30)
        wait_until(lambda: points_of(nodes.recovery, item)[-1] > before + 1, what="points during the test")
        assert int(test["sequence"]) >= before
        nodes.recovery.call("target.test_cleanup", item, 1)
        with pytest.raises(NotFoundError):
            nodes.recovery.daemon.fabric.find("pair-a-test")
        assert not list((hypervisor_pair.recovery.storage / "secondsite" / "replicas" / item).glob("*.qcow2"))

        # There: nothing that the guest wrote is lost.
        there = fail_over(nodes.primary, nodes.recovery, item, "pair-a", 1)
        source = check_records(images_of(nodes.primary, "pair-a"))
        assert source.ok
        base = int(str(there["sequence"]))
        stand_alone_copies_equal(nodes, item, base, images_of(nodes.primary, "pair-a"), short_path / "copies")
        with ConsoleReader(hypervisor_pair.recovery, "pair-a") as console:
            first = console.first_record(30)
        assert first == source.last + 1
        with pytest.raises(SecondSiteError, match=r"locked|failed over"):
            nodes.primary.daemon.fabric.start("pair-a")

        # Reversed: only what changed since is shipped.
        reverse(nodes.recovery, nodes.primary, item, 2)
        wait_until(lambda: points_of(nodes.primary, item)[-1:] > [base + 1], what="a point in reverse")
        record = nodes.recovery.daemon.items.get(item)
        assert record.role is Role.SOURCE
        assert record.counters.get("resyncs", 0) == 0
        assert record.counters["bytes_shipped"] <= 1.1 * record.counters["bytes_changed"] + (8 << 20)
        newest = points_of(nodes.primary, item)[-1]
        found = check_records(extract(nodes.primary, item, newest, short_path))
        assert found.ok, found.problems

        # And back: nothing is lost either.
        fail_over(nodes.recovery, nodes.primary, item, "pair-a", 2)
        away = check_records(images_of(nodes.recovery, "pair-a"))
        assert away.ok
        with ConsoleReader(hypervisor_pair.primary, "pair-a") as console:
            assert console.first_record(30) == away.last + 1
        reverse(nodes.primary, nodes.recovery, item, 3)
        wait_until(lambda: len(points_of(nodes.recovery, item)) >= 2, what="points after the failback")
        sequence = points_of(nodes.recovery, item)[-1]
        disks = extract(nodes.recovery, item, sequence, short_path)
        assert check_records(disks).ok
        for disk in disks:
            assert check_filesystem(disk).ok

        # Disable leaves the machine and nothing else.
        nodes.primary.call("source.stop", item, 3)
        nodes.recovery.call("target.remove", item, 3, {"delete_replica": False})
        assert nodes.primary.daemon.fabric.power("pair-a").active
        assert not (hypervisor_pair.recovery.storage / "secondsite" / "journals" / item).exists()
        assert not (hypervisor_pair.recovery.storage / "secondsite" / "replicas" / item).exists()
        domain = hypervisor_pair.primary.connect().lookupByName("pair-a")
        assert domain.listAllCheckpoints() == []
        domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
