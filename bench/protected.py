"""What the benchmarks of replication share: two node daemons over mutual TLS on loopback, and machines to protect.

The nodes are the product's own, with their own listeners, stores, replicators and journals; only the service is not
there: its commands are given by tests/support/node_pair.py. The machines run in QEMU without an operating system
(paused, so that they take no processor time); what a guest would write is written through their disks' devices.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey, ItemId
from secondsite.node.source.outcome import CycleOutcome
from secondsite.node.source.replicator import Replicator
from support.hypervisors import HypervisorPair, running_pair
from support.node_pair import POLICY, NodePair, node_pair, wait_until
from support.tracked_items import points_of
from support.tracked_machines import TrackedMachine

VDA = DiskKey("vda")
SELDOM = replace(POLICY, copy_frequency_s=900)
"""Cycles run when they are asked for, so that no other disturbs a measurement."""
_POLL_S = 0.001
_TCP_INFO = struct.Struct("120xQQ")
"""Linux's tcp_info up to tcpi_bytes_acked and tcpi_bytes_received."""


@dataclass
class Site:
    """Both sides, and the folder for images and backups, which both libvirt's and this process may use."""

    folder: Path
    hypervisors: HypervisorPair
    nodes: NodePair

    @property
    def primary(self) -> Hypervisor:
        return self.hypervisors.primary

    def machine(self, name: str, size: int) -> TrackedMachine:
        """A running machine with an empty disk."""
        machine = TrackedMachine(self.primary, self.folder / name, name, {VDA: size})
        machine.start()
        return machine

    def protect(self, machine: TrackedMachine) -> Item:
        """Protect the machine, and wait for the first point."""
        size = machine.domain.blockInfo(VDA)[0]
        item = self.nodes.protect(machine.domain.UUIDString(), {VDA: size}, policy=SELDOM)
        wait_until(lambda: points_of(self.nodes.recovery, item), what="the first point")
        replicator = self.nodes.primary.daemon.replicators.find(item)
        assert replicator is not None
        wait_until(lambda: replicator.idle, what="the first cycle's end")
        return Item(self, item, replicator)


@dataclass
class Item:
    """A protected machine."""

    site: Site
    id: ItemId
    replicator: Replicator

    def cycle(self, timeout_s: float = 200) -> tuple[float, CycleOutcome]:
        """Have a cycle run; return the seconds from asking until it is over and the target holds its point."""
        outcomes = self.replicator.outcomes
        last = outcomes[-1] if outcomes else None
        started = time.perf_counter()
        self.replicator.wake()
        while not outcomes or outcomes[-1] is last:
            time.sleep(_POLL_S)
            if self.replicator.error is not None:
                raise self.replicator.error
            assert time.perf_counter() - started < timeout_s, "the cycle does not end"
        seconds = time.perf_counter() - started
        wait_until(lambda: self.replicator.idle, what="the replicator's rest")
        outcome = outcomes[-1]
        assert points_of(self.site.nodes.recovery, self.id)[-1] == outcome.sequence
        return seconds, outcome


@contextmanager
def site() -> Iterator[Site]:
    """Two sites; everything is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with running_pair(folder) as pair, node_pair(folder, pair) as nodes:
            yield Site(folder, pair, nodes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Wire:
    """Counts what TCP carries over the connections to the target's listener, in both directions, from now on.

    Asked of the kernel, at the source's end of each connection. One that was closed meanwhile is not counted: the
    sender keeps those that it uses.
    """

    def __init__(self, here: Site) -> None:
        self._listener = ("127.0.0.1", here.nodes.recovery.daemon.config.listen_port)
        self._before = self._counts()

    def carried(self) -> int:
        """Bytes of all kinds since this was made: bodies, headers, answers, TLS."""
        return sum(count - self._before.get(inode, 0) for inode, count in self._counts().items())

    def _counts(self) -> dict[str, int]:
        counts = {}
        for path in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                inode = str(path.readlink())
                if not inode.startswith("socket:"):
                    continue
                found = socket.socket(fileno=os.dup(int(path.name)))
                with found:
                    if found.family == socket.AF_INET and found.getpeername() == self._listener:
                        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                        counts[inode] = sum(_TCP_INFO.unpack(info))
        return counts
