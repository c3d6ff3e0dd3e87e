"""A source and a target without network and hypervisor: a fake capture, the real cycle, a real receiver over a real journal.

The world remembers what the source's disks held at each snapshot, so it can judge every point that the journal offers,
acknowledged or not, and the digest tables on the source's side. Every call that crosses a port can be made to fail,
before its effect or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from secondsite.blocks import UNKNOWN, DigestTable, block_digests
from secondsite.capture.fake import FakeCapture
from secondsite.capture.fake_agent import FakeAgent
from secondsite.capture.port import Capture, Snapshot
from secondsite.capture.quiesce import Quiescer
from secondsite.errors import UnavailableError
from secondsite.journal import Journal
from secondsite.journal.base import open_raw_base
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId
from secondsite.model.manifest import Consistency, VmDefinition
from secondsite.model.policy import Policy
from secondsite.model.units import KIB
from secondsite.node.records import ItemRecord, ItemStore, Peer, Role
from secondsite.node.source.cycle import Cycle
from secondsite.node.source.group import Meeting
from secondsite.node.source.outcome import CycleOutcome
from secondsite.node.target.journals import Journals
from secondsite.node.target.receiver import JournalReceiver
from secondsite.ship.progress import Progress
from secondsite.ship.protocol import CellRange, PartRef, ReplicaStatus
from secondsite.ship.sender import Outgoing
from support.journals import START

T = TypeVar("T")

ITEM = ItemId("0b6c7e9a-0000-4000-8000-00000000cccc")
SOURCE, TARGET = NodeId("node-source"), NodeId("node-target")
KEY = bytes(range(32))
VDA, VDB = DiskKey("vda"), DiskKey("vdb")
SIZES = {VDA: 320 * KIB, VDB: 70 * KIB}  # the last block of vdb is short
PART = 32 * KIB
BATCH = 2
"""Parts that are settled together."""
POLICY = Policy(copy_frequency_s=5, retention_points=4, resync_window="always")

Contents = dict[DiskKey, bytes]


class Machine:
    """What outlives every crash of the nodes: the source's disks, the clock, and what each snapshot held."""

    def __init__(self) -> None:
        self.time = START
        self.capture = FakeCapture(SIZES, clock=self.tick, definition=VmDefinition("fake", "a machine"))
        self.agent = FakeAgent()
        self.contents: dict[datetime, Contents] = {}

    def tick(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time

    def now(self) -> Contents:
        return {key: bytes(disk.content) for key, disk in self.capture.disks.items()}


class World:
    """The two nodes' state in `root`/s and `root`/t, and the ports of a cycle over them."""

    def __init__(self, root: Path, machine: Machine | None = None) -> None:
        self.root = root
        self.machine = machine or Machine()
        self.calls = 0
        self.fail_at: int | None = None
        """The number of the port call that fails; each call has two: before its effect and after it."""
        self.sent = 0
        """Bytes of parts that were on the wire."""
        self.told: list[str] = []
        """Codes of the events that the service would be told."""
        self._open()

    @classmethod
    def create(cls, root: Path) -> World:
        """Make both sides as `target.create` and `source.start` do."""
        (root / "s").mkdir(parents=True)
        (root / "t" / "journals").mkdir(parents=True)
        Journal.create(
            root / "t" / "journals" / ITEM, item=ITEM, name="web", epoch=Epoch(1), key=KEY, disks=SIZES
        ).close()
        ItemStore(root / "t" / "items").put(_record(Role.TARGET, Peer(SOURCE)))
        items = ItemStore(root / "s" / "items")
        (items.folder(ITEM) / "digests").mkdir(parents=True)
        for disk, size in SIZES.items():
            DigestTable.create(items.folder(ITEM) / "digests" / f"{disk}.tbl", size, KEY).close()
        items.put(_record(Role.SOURCE, Peer(TARGET, "127.0.0.1", 1)))
        return cls(root)

    def _open(self) -> None:
        self.items = ItemStore(self.root / "s" / "items")
        target = ItemStore(self.root / "t" / "items")
        self.journals = Journals(lambda item: self.root / "t" / "journals" / item, open_raw_base)
        self.receiver = JournalReceiver(target, self.journals)
        self.link = Link(self)
        self.cycle = Cycle(self, self.items.get(ITEM))

    def restart(self) -> None:
        """Both nodes were killed: only their files are left."""
        self.journals.close()
        self._open()

    def close(self) -> None:
        self.journals.close()

    def run(self) -> CycleOutcome:
        """Run a cycle."""
        return self.cycle.run()

    def call(self, effect: Callable[[], T]) -> T:
        """Cross a port: may fail before the effect, or after it (the answer is lost)."""
        self._may_fail()
        result = effect()
        self._may_fail()
        return result

    def _may_fail(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise UnavailableError("the connection broke")

    # -- the cycle's ports

    def clock(self) -> datetime:
        return self.machine.time

    def monotonic(self) -> float:
        return 0.0

    def capture(self, record: ItemRecord) -> Capture:
        return _Watched(self)

    def meet(self, record: ItemRecord, consistency: Consistency) -> AbstractContextManager[Meeting]:
        return nullcontext(Meeting())

    def quiescer(self, record: ItemRecord) -> Quiescer:
        return Quiescer(self.machine.agent, self.folder / "frozen")

    def tell(self, code: str, message: str) -> None:
        assert message
        self.told.append(code)

    def definition(self, record: ItemRecord) -> VmDefinition:
        return self.machine.capture.definition

    def sender(self, record: ItemRecord) -> Any:
        return self.link

    def progress(self, done: int, total: int | None) -> None:
        return None

    def cancelled(self) -> bool:
        return False

    # -- judging

    @property
    def journal(self) -> Journal:
        return self.journals.get(ITEM)

    @property
    def folder(self) -> Path:
        """The source's folder of the item."""
        return self.items.folder(ITEM)

    def check_points(self) -> None:
        """Every point that the journal offers holds what the source held at its time."""
        for point in self.journal.points():
            with self.journal.view(point.sequence, purpose="test", verify=True) as view:
                expected = self.machine.contents[point.time]
                for disk, view_disk in view.disks.items():
                    held = bytearray(view_disk.size)
                    view_disk.readinto(0, memoryview(held))
                    assert held == expected[disk], f"point {point.sequence}, disk {disk} is wrong"

    def check_latest(self) -> None:
        """The target's last point is the machine as it is now, acknowledged here, and the tables tell the truth."""
        self.check_points()
        last = self.journal.status().last
        acked = self.items.get(ITEM).acked
        assert last is not None
        assert acked is not None
        assert (last.digest, last.sequence) == (acked.digest, acked.sequence)
        assert self.machine.contents[last.time] == self.machine.now()
        self.check_tables(self.machine.now(), unknown=False)
        assert not (self.folder / "pending").exists()

    def check_tables(self, contents: Contents, *, unknown: bool = True) -> None:
        """Every cell is the digest of what the target holds, or (if so allowed) unknown."""
        for disk, content in contents.items():
            with DigestTable.open(self.folder / "digests" / f"{disk}.tbl", KEY) as table:
                cells = table.get(0, len(table))
                right = cells == block_digests(content, KEY)
                if unknown:
                    right |= cells == UNKNOWN
                assert right.all(), f"cells of {disk} are wrong: {np.flatnonzero(~right).tolist()}"


class Link:
    """The sender, without a network: the receiver is called as the listener calls it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._receiver = world.receiver
        self.progress = Progress(monotonic=lambda: 0.0)
        self.failing = False

    def status(self) -> ReplicaStatus:
        return self._world.call(lambda: self._receiver.status(ITEM, SOURCE))

    def suggested_part_size(self) -> int:
        return PART

    def send(
        self,
        parts: Iterable[Outgoing],
        on_sent: Callable[[Outgoing], object] | None = None,
        settle: Callable[[list[Outgoing]], object] = lambda _: None,
    ) -> None:
        arrived = []
        for part in parts:
            self._world.call(lambda part=part: self._deliver(part))  # type: ignore[misc]
            if on_sent is not None:
                on_sent(part)
            arrived.append(part)
            if len(arrived) == BATCH:
                settle(arrived)
                arrived = []
        if arrived:
            settle(arrived)

    def _deliver(self, part: Outgoing) -> None:
        if part.digest not in self._receiver.has(ITEM, SOURCE, Epoch(1), [PartRef(part.digest, part.kind)]):
            return
        data = part.path.read_bytes()
        with self._receiver.incoming(ITEM, SOURCE, Epoch(1), part.digest, part.kind) as incoming:
            incoming.write(data)
            incoming.commit()
        self._world.sent += len(data)
        self.progress.add(raw=len(data), wire=len(data))

    def apply_initial(self, disk: DiskKey, digests: Sequence[Digest]) -> None:
        self._world.call(lambda: self._receiver.apply_initial(ITEM, SOURCE, Epoch(1), disk, digests))

    def seal(self, manifest: bytes) -> Digest:
        return self._world.call(lambda: self._receiver.seal(ITEM, SOURCE, Epoch(1), manifest))

    def digests(self, disk: DiskKey, ranges: Iterable[CellRange]) -> Iterator[bytes]:
        return self._world.call(lambda: self._receiver.digests(ITEM, SOURCE, Epoch(1), disk, list(ranges)))


class _Watched:
    """The machine's capture, through a port that may fail; what each snapshot holds is remembered."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._machine = world.machine

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        def take() -> Snapshot:
            snapshot = self._machine.capture.snapshot(since=since, new=new)
            self._machine.contents[snapshot.time] = self._machine.now()
            return snapshot

        return self._world.call(take)

    def tidy(self) -> None:
        self._world.call(self._machine.capture.tidy)

    def forget(self, keep: Any) -> None:
        self._world.call(lambda: self._machine.capture.forget(keep))


def _record(role: Role, peer: Peer) -> ItemRecord:
    return ItemRecord(
        item=ITEM,
        name="web",
        epoch=Epoch(1),
        role=role,
        digest_key=KEY.hex(),
        policy=POLICY,
        disks=tuple(SIZES),
        vm="a machine" if role is Role.SOURCE else "",
        peer=peer,
    )
