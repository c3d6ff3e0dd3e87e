"""Two nodes with a real network between them: the cycle world's machine, tables and journal, the real sender and the real listener over mutual TLS, and a bad line.

Counted, so that nothing can be read or sent again unseen: bytes read from the source's disks, bytes of parts that the receiver took in, bytes on the line.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from secondsite.capture.port import Capture, Extent, Snapshot, SnapshotDisk
from secondsite.errors import SecondSiteError
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId
from secondsite.model.units import MIB
from secondsite.node.records import ItemRecord
from secondsite.node.source.replicator import Adapters, Replicator
from secondsite.ship.backoff import QuickRetries
from secondsite.ship.client import Endpoint
from secondsite.ship.http import Limits
from secondsite.ship.identity import CertificateAuthority
from secondsite.ship.listener import Listener
from secondsite.ship.protocol import PartKind
from secondsite.ship.sender import Sender
from support import cycle_world
from support.cycle_world import ITEM, SOURCE, TARGET, VDA, World
from support.toxic_link import ToxicLink, Toxics

LIMITS = Limits(handshake_s=3.0, head_s=3.0, stall_s=2.0, send_s=5.0, stop_s=0.5)
"""The product's own, some ten times shorter, so that a silent peer costs a test seconds and not a minute."""
RETRIES = QuickRetries(attempts=5, base_s=0.05, cap_s=0.2)


@dataclass
class Counts:
    """What was moved since the last `take`."""

    read: int = 0
    """Bytes read from the source's disks."""
    received: int = 0
    """Bytes of parts that arrived, whole or not."""
    committed: int = 0
    attempts: int = 0
    failed: int = 0
    codes: list[str] = field(default_factory=list)


class CountingReceiver:
    """The target's receiver, with a look at what comes in."""

    def __init__(self, world: NetworkWorld) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.receiver, name)

    def seal(self, item: ItemId, peer: NodeId, epoch: Epoch, manifest: bytes) -> Digest:
        digest = self._world.receiver.seal(item, peer, epoch, manifest)
        self._world.arrived("seal")
        return digest

    @contextmanager
    def incoming(
        self, item: ItemId, peer: NodeId, epoch: Epoch, digest: Digest, kind: PartKind
    ) -> Iterator[_CountingPart]:
        with self._world.receiver.incoming(item, peer, epoch, digest, kind) as part:
            yield _CountingPart(self._world, part)


class _CountingPart:
    def __init__(self, world: NetworkWorld, part: Any) -> None:
        self._world = world
        self._counts = world.counts
        self._part = part
        self._length = 0

    def write(self, data: Any) -> None:
        self._counts.received += len(data)
        self._length += len(data)
        self._part.write(data)

    def commit(self) -> None:
        self._part.commit()
        self._counts.committed += self._length
        self._world.arrived("part")


class _CountingDisk:
    """A disk of a snapshot; `SnapshotDisk` by structure."""

    def __init__(self, disk: SnapshotDisk, counts: Counts) -> None:
        self._disk = disk
        self._counts = counts
        self.size, self.whole, self.device = disk.size, disk.whole, disk.device

    def changed(self) -> Iterator[Extent]:
        return self._disk.changed()

    def read(self, extents: Iterable[tuple[int, int]]) -> Generator[tuple[int, memoryview], None, None]:
        for offset, view in self._disk.read(extents):
            self._counts.read += len(view)
            yield offset, view


class _CountingCapture:
    """The machine's capture; `Capture` by structure."""

    def __init__(self, capture: Capture, counts: Counts) -> None:
        self._capture = capture
        self._counts = counts

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        snapshot = self._capture.snapshot(since=since, new=new)
        self._counts.attempts += 1
        snapshot.disks = {key: _CountingDisk(disk, self._counts) for key, disk in snapshot.disks.items()}
        return snapshot

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capture, name)


class NetworkWorld(World):
    """See the module's docstring. Made by `network_world`."""

    link_to: Endpoint
    line: ToxicLink
    counts: Counts
    sender_options: dict[str, Any]
    trust: Any
    _sender: Sender | None = None
    on_arrival: Mapping[str, Callable[[], object]] = MappingProxyType({})
    """What happens once, when a "part" or a "seal" is durable at the target and its answer is not yet sent."""

    def arrived(self, what: str) -> None:
        """A call has had its effect at the target."""
        action = self.on_arrival.get(what)
        if action is not None:
            self.on_arrival = {}
            action()

    def sender(self, record: ItemRecord) -> Any:
        """The kept sender; `failed` drops it, as the replicator does."""
        if self._sender is None:
            self._sender = self.new_sender(record, threading.Event())
        return self._sender

    def new_sender(self, record: ItemRecord, cancelled: threading.Event) -> Sender:
        """Dial through the line."""
        options = {"retries": RETRIES, "timeout_s": 3.0, "compression": False, **self.sender_options}
        uniform = random.Random(1).uniform
        return Sender(
            self.link_to, self.trust, ITEM, record.epoch, cancelled=cancelled, uniform=uniform, **options
        )

    def capture(self, record: ItemRecord) -> Capture:
        return _CountingCapture(super().capture(record), self.counts)

    def failed(self) -> None:
        """A cycle has failed."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def take(self) -> Counts:
        """Return what was counted and begin anew."""
        found, fresh = Counts(**vars(self.counts)), Counts()
        vars(self.counts).update(vars(fresh))
        return found

    def until_sealed(self, attempts: int) -> Counts:
        """Run cycles until one succeeds, at most so many; after each failure nothing may be wrong."""
        for _ in range(attempts):
            try:
                self.run()
                return self.take()
            except SecondSiteError as error:
                self.counts.failed += 1
                self.counts.codes.append(error.code)
                self.failed()
                self.check_acknowledged()
        raise AssertionError(f"no point after {attempts} cycles: {self.counts}")

    def check_acknowledged(self) -> None:
        """What the source takes for acknowledged is there, and every point that is there is right."""
        self.check_points()
        acked = self.items.get(ITEM).acked
        last = self.journal.status().last
        if acked is not None:
            assert last is not None, "an acknowledged point is lost"
            assert last.sequence >= acked.sequence, "an acknowledged point is lost"
            assert acked.digest in {point.digest for point in self.journal.points()}

    def write(self, offset: int, data: bytes) -> None:
        """The guest writes."""
        self.machine.capture.write(VDA, offset, data)

    def replicator(self, **adapters: Any) -> Replicator:
        """Return the node's real replicator over this world."""
        wired = Adapters(
            capture=self.capture,
            sender=self.new_sender,
            definition=self.definition,
            adopt_checkpoint=lambda _record, _name: None,
            clock=self.clock,
            **adapters,
        )
        return Replicator(self.items, ITEM, wired)


@contextmanager
def network_world(
    folder: Path,
    toxics: Toxics | None = None,
    *,
    size: int = 8 * MIB,
    seed: int = 0,
    limits: Limits = LIMITS,
    **sender_options: Any,
) -> Iterator[NetworkWorld]:
    """Make both nodes, with one disk of `size` bytes, and the line between them."""
    sizes: Mapping[DiskKey, int] = {VDA: size}
    authority = CertificateAuthority.create("vault")
    folder.mkdir(parents=True, exist_ok=True)
    with patch.object(cycle_world, "SIZES", sizes):
        world = NetworkWorld.create(folder / "w")
    assert isinstance(world, NetworkWorld)
    world.counts, world.sender_options = Counts(), sender_options
    world.trust = authority.issue_credentials(SOURCE, folder / "source")
    credentials = authority.issue_credentials(TARGET, folder / "target")
    receiver: Any = CountingReceiver(world)
    with (
        Listener(("127.0.0.1", 0), credentials, receiver, threads=6, limits=limits) as listener,
        ToxicLink(listener.address, toxics, seed=seed) as line,
    ):
        world.line, world.link_to = line, Endpoint("127.0.0.1", line.port, TARGET)
        yield world
        world.failed()
    world.close()
