"""The first copy by medium, on two daemons and real QEMU: exported while the guest writes, carried, and only what differs shipped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import NotFoundError
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.records import check_records
from secondsite.model.ids import ItemId
from support.guests import built_guest, running_guest
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, PairNode, node_pair, wait_until
from support.tracked_items import (
    disable,
    machine_content,
    next_point,
    point_content,
    points_of,
    remove_domains,
)
from support.tracked_machines import TrackedMachine
from support.two_sides import MIB, PLAIN, VDA, VDB

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SIZE = 64 * MIB
DISKS = {VDA: SIZE, VDB: SIZE}
COLD = 24 * MIB
KILLED_AMID = """
import os, signal, sys
from pathlib import Path
from secondsite.node.source.export import export_machine
state, vm, output = sys.argv[1:]
export_machine(Path(state), vm, Path(output), lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair
    remove_domains(*hypervisor_pair, prefix="seed-")


def disks_with_cold_data(hypervisor_pair: HypervisorPair, name: str) -> list[Path]:
    """Make a guest's disks with much data, in free space of its file system, that it never writes again."""
    disks = create_disks(hypervisor_pair.primary.storage, name, size=SIZE, record_area=2 * MIB)
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {SIZE - COLD - MIB} {COLD}", str(disks[1])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return disks


def export(node: PairNode, vm: str, output: Path) -> dict[str, Any]:
    """Export a machine as an operator does."""
    command = [sys.executable, "-m", "secondsite", "node", "export", vm, "--output", str(output)]
    done = subprocess.run(
        [*command, "--state", str(node.state), "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def carry(medium: Path, hypervisor_pair: HypervisorPair) -> Path:
    """Bring the medium to the other site, where it is mounted elsewhere."""
    there = hypervisor_pair.recovery.storage / f"{medium.name}-arrived"
    shutil.copytree(medium, there)
    shutil.rmtree(medium)
    return there


def first_point(nodes: NodePair, item: ItemId) -> dict[str, int]:
    """Wait for the first point, and return what the source counted for it."""
    wait_until(lambda: points_of(nodes.recovery, item), what="the first point")
    replicator = nodes.primary.daemon.replicators.find(item)
    assert replicator is not None
    # Its outcome comes after all of its counters: what was shipped is counted later than the cycle itself.
    wait_until(lambda: replicator.outcomes, what="its counters")
    return dict(nodes.primary.daemon.items.get(item).counters)


def nothing_is_left(node: PairNode, item: ItemId) -> None:
    """The node knows nothing of the item, and has nothing of it."""
    with pytest.raises(NotFoundError):
        node.daemon.items.get(item)
    storage = Path(node.daemon.config.storage) / "secondsite"
    assert not (storage / "journals" / item).exists()
    assert not list((node.state / "run").glob("seed-*"))


def test_a_guest_that_writes_is_exported_carried_and_shipped_but_for_what_it_wrote_since(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    files = built_guest(short_path)
    name = "seed-a"
    disks = disks_with_cold_data(hypervisor_pair, name)
    with running_guest(hypervisor_pair.primary, files, name, disks=disks, rate=50, churn=2) as guest:
        medium = short_path / "web"
        told = export(nodes.primary, name, medium)
        assert guest.domain.listAllCheckpoints() == [], "nothing of ours is left on the machine"
        assert {disk["size"] for disk in told["disks"].values()} == {SIZE}
        copies = [medium / "vda.raw", medium / "vdb.raw"]
        taken = check_records(copies)
        assert taken.ok, "one instant of both disks"
        assert sum(copy.stat().st_blocks * 512 for copy in copies) > COLD

        seed = carry(medium, hypervisor_pair)
        item = nodes.protect(name, DISKS, policy=PLAIN, seed=seed)
        counters = first_point(nodes, item)
        assert counters["bytes_shipped"] < COLD // 4, "only what was written since the export"
        assert counters.get("relearned", 0) == 0

        # Deltas follow as ever, and the last point is the disks, to the byte.
        last = guest.shut_down()
        sequence = next_point(nodes.primary, nodes.recovery, item)
        point = point_content(nodes.recovery, item, sequence)
        assert point == machine_content(guest.domain, short_path)
        paths = []
        for key, data in point.items():
            paths.append(short_path / f"{key}.point")
            paths[-1].write_bytes(data)
        assert check_records(sorted(paths)).last == last > taken.last

        disable(nodes, nodes.primary, nodes.recovery, item, 1)
        nothing_is_left(nodes.recovery, item)
        assert sorted(path.name for path in seed.iterdir()) == ["export.json", "vda.raw", "vdb.raw"]
    for disk in disks:
        disk.unlink()


def test_an_older_image_saves_what_has_not_changed_since(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    machine = TrackedMachine(hypervisor_pair.primary, hypervisor_pair.primary.storage, "seed-b", DISKS)
    try:
        machine.start()
        machine.write(VDA, 0, b"\x01" * (32 * MIB))
        machine.write(VDB, MIB, b"\x02" * MIB)
        machine.stop()
        seed = hypervisor_pair.recovery.storage / "old-backup"
        seed.mkdir()
        shutil.copy(machine.images[VDA], seed / "vda.qcow2")  # of vdb there is none

        machine.start()
        machine.write(VDA, 4 * MIB, b"\x03" * MIB)
        machine.write(VDA, 8 * MIB, bytes(2 * MIB))
        machine.write(VDA, 40 * MIB, b"\x04" * MIB)
        item = nodes.protect(machine.name, DISKS, policy=PLAIN, seed=seed)
        counters = first_point(nodes, item)
        assert counters["bytes_changed"] == 5 * MIB
        assert 3 * MIB <= counters["bytes_shipped"] < 3 * MIB + MIB // 2, "zeros cost nothing"
        machine.write(VDA, 20 * MIB, b"\x05" * MIB)
        machine.stop()
        sequence = next_point(nodes.primary, nodes.recovery, item)
        assert point_content(nodes.recovery, item, sequence) == machine_content(machine.domain, short_path)
        assert nodes.primary.daemon.items.get(item).counters.get("resyncs", 0) == 0
        disable(nodes, nodes.primary, nodes.recovery, item, 1)
        nothing_is_left(nodes.recovery, item)
    finally:
        machine.remove()


def test_a_killed_export_leaves_no_job_on_the_machine_and_the_next_one_is_whole(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    machine = TrackedMachine(hypervisor_pair.primary, hypervisor_pair.primary.storage, "seed-c", {VDA: SIZE})
    try:
        machine.start()
        machine.write(VDA, 0, b"\x01" * (8 * MIB))
        medium = short_path / "m"
        done = subprocess.run(
            [sys.executable, "-c", KILLED_AMID, str(nodes.primary.state), machine.name, str(medium)],
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == -9, done.stderr
        assert "ss-run-" in machine.domain.backupGetXMLDesc(0), "the job goes on without a reader"
        nodes.primary.daemon.cut_exports.look()
        with pytest.raises(Exception, match="no domain backup job"):
            machine.domain.backupGetXMLDesc(0)
        assert machine.domain.listAllCheckpoints() == []
        assert not list((hypervisor_pair.primary.storage / "secondsite" / "scratch").glob("x-*"))
        assert not (medium / "export.json").exists()

        shutil.rmtree(medium)
        export(nodes.primary, machine.name, medium)
        machine.stop()
        assert (medium / "vda.raw").read_bytes() == machine_content(machine.domain, short_path)[VDA]
        # Shut off, it is exported as well, and nothing is left in its image.
        export(nodes.primary, machine.name, short_path / "off")
        assert (short_path / "off" / "vda.raw").read_bytes() == (medium / "vda.raw").read_bytes()
        said = subprocess.run(
            ["qemu-img", "info", str(machine.images[VDA])], capture_output=True, text=True, timeout=60
        )
        assert "bitmaps" not in said.stdout
        assert machine.domain.listAllCheckpoints() == []
    finally:
        machine.remove()
