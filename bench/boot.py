"""Seconds from the order to boot an old, long journal's newest point until the guest's first line on its console.

Ours is a test failover as a node runs it (the command `target.test_start`): find the point in the journal, start the
process of the view, which opens the journal, make the overlay, define the machine, boot it. The node is one that received the
points; what one takes that was started just now is printed, too. The peer is the same guest with the same bytes on a local
raw file, defined already. All are taken in turns; the best of each counts. The guest's first line is the workload's first
one (SS-BOOT): it has read 16 MiB of its disk then.

    python bench/boot.py [--points N] [--repeats N] [--sizes GIB...]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from points import DISK, put, seal, unsynced
from report import Row, say

from secondsite.durable import allocated_ranges
from secondsite.journal import Journal
from secondsite.lab.console import ConsoleReader
from secondsite.lab.guest.builder import GuestBuilder
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import Epoch, ItemId
from secondsite.model.manifest import DiskPoint, VmDefinition

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where the two nodes are
from support.hypervisors import running_pair
from support.node_pair import KEY, POLICY, NodePair, node_pair

GIB, BLOCK, PART = 1 << 30, 4096, 64 << 20
WRITES = 16
"""Blocks that each point changes: 46,000 over all."""
FIRST_LINE = "SS-BOOT"
BOUND = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=2880)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 500], help="GiB")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/tmp"))
    folder.chmod(0o755)
    # The view's process loads compiled modules as from an installed package, also where the checkout must stay clean.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    try:
        files = GuestBuilder().build().copy_to(folder / "boot")
        (folder / "n").mkdir()
        with running_pair(folder) as pair, node_pair(folder / "n", pair) as nodes:
            for gib in options.sizes:
                name = f"boot{gib}"
                (disk,) = create_disks(
                    pair.primary.storage, name, count=1, size=gib * GIB, image_format="raw"
                )
                pair.primary.own(disk)
                with pair.primary.connect() as connection:
                    connection.defineXML(domain_xml(name, files, [disk]))
                item = fill(nodes, pair.primary, name, disk, options.points)
                report(nodes, pair.primary, pair.recovery, name, item, gib, options)
    finally:
        shutil.rmtree(folder)


def report(
    nodes: NodePair,
    primary: Hypervisor,
    recovery: Hypervisor,
    name: str,
    item: ItemId,
    gib: int,
    options: argparse.Namespace,
) -> None:
    """Boot both in turns, and say the row."""
    ours, theirs = [], []
    for _ in range(options.repeats):
        theirs.append(local(primary, name))
        ours.append(failed_over(nodes, recovery, f"{name}-test", item))
    nodes.recovery.close()
    nodes.recovery.start()
    print(f"a node just started: {failed_over(nodes, recovery, f'{name}-test', item):.2f} s", file=sys.stderr)
    print(
        "local",
        [round(value, 2) for value in theirs],
        "ours",
        [round(value, 2) for value in ours],
        file=sys.stderr,
    )
    say(
        Row(
            f"boot from the newest of {options.points} points to the guest's first line",
            f"{gib} GiB disk, {WRITES * options.points} blocks changed since the base, a test failover, TCG, "
            f"best of {options.repeats} in turns",
            f"{min(ours):.2f} s",
            f"{min(theirs):.2f} s from a local raw file",
            min(ours) / min(theirs),
            "x",
            BOUND,
            least=False,
        )
    )


def local(hypervisor: Hypervisor, name: str) -> float:
    """Boot the guest from its raw file."""
    with hypervisor.connect() as connection:
        domain = connection.lookupByName(name)
        begin = time.perf_counter()
        domain.create()
        with ConsoleReader(hypervisor, name) as console:
            console.wait_for(FIRST_LINE)
            seconds = time.perf_counter() - begin
        domain.destroy()
    return seconds


def failed_over(nodes: NodePair, hypervisor: Hypervisor, name: str, item: ItemId) -> float:
    """Boot the newest point in a test failover."""
    node = nodes.recovery
    begin = time.perf_counter()
    node.call("target.test_start", item, 1, {"sequence": None, "name": name, "networks": {}})
    with ConsoleReader(hypervisor, name) as console:
        console.wait_for(FIRST_LINE)
        seconds = time.perf_counter() - begin
    node.call("target.test_cleanup", item, 1)
    return seconds


def fill(nodes: NodePair, hypervisor: Hypervisor, name: str, disk: Path, points: int) -> ItemId:
    """Make the journal: a base with the disk's bytes, and points that write blocks all over it, as they are."""
    item = ItemId(str(uuid.uuid4()))
    size = disk.stat().st_size
    policy = {**asdict(POLICY), "retention_hours": 8760.0, "retention_points": 1_000_000}
    shared = {"name": name, "digest_key": KEY, "policy": policy, "disks": {DISK: size}}
    nodes.recovery.call("target.create", item, 1, {**shared, **nodes.primary.as_source})
    with hypervisor.connect() as connection:
        vm = nodes.primary.daemon.fabric.definition(connection.lookupByName(name).UUIDString())
    journal = nodes.recovery.daemon.journals.get(item)
    with unsynced(), disk.open("rb") as file:
        _fill(journal, file, size, points, vm)
    return item


def _fill(journal: Journal, file: BinaryIO, size: int, points: int, vm: VmDefinition) -> None:
    def read(at: int, length: int) -> bytes:
        file.seek(at)
        return file.read(length)

    for start, length in allocated_ranges(file.fileno(), size):
        for at in range(start, start + length, PART):
            part = put(journal, size, {at: read(at, min(PART, start + length - at))})
            journal.apply_initial(Epoch(1), DISK, [part.digest])
    previous = seal(journal, 1, None, DiskPoint(size), vm)
    choose = random.Random(1)
    for number in range(2, points + 1):
        offsets = sorted({choose.randrange(size // BLOCK) * BLOCK for _ in range(WRITES)})
        log = put(journal, size, {at: read(at, BLOCK) for at in offsets})
        previous = seal(journal, number, previous, DiskPoint(size, (log,), changed=BLOCK * len(offsets)), vm)


if __name__ == "__main__":
    main()
