"""One replication cycle of one item: capture, ship, seal, and only then advance what we believe the target holds.

Which blocks to look at follows from what is known:

- no acknowledged point: *initial*. Everything is compared against the table, which describes the journal's base (all
  zeros at first); parts are applied to the base as they arrive; the point is sealed at the end.
- an acknowledged point without a checkpoint: *resync*. Tracking was lost; everything is compared against the table.
- an acknowledged point with its checkpoint: *delta*.
- the same, but the target's last point turned out to be another one: a *resync* that looks at what the checkpoint
  names and at what the two points differ in.

The order that keeps a crash harmless: parts are durable at the target; the pending record is durable here; the point
is sealed there; the table is advanced and synced; the record says "acknowledged"; the pending record goes. What is
left by a crash is resolved before the next cycle (see belief.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from secondsite.blocks import DigestTable
from secondsite.capture.parts import Mode, Part, SpoolBudget, produce
from secondsite.capture.port import Capture, Snapshot
from secondsite.capture.quiesce import Quiescer
from secondsite.capture.runs import Runs
from secondsite.errors import CorruptError, TrackingLostError
from secondsite.journal import table_label
from secondsite.model.ids import Digest, DiskKey, Sequence
from secondsite.model.manifest import (
    Consistency,
    DiskPoint,
    FileRef,
    Manifest,
    PointKind,
    VmDefinition,
)
from secondsite.model.units import PART_DATA_MAX
from secondsite.node.records import Acked, ItemRecord, ItemStore
from secondsite.node.source.belief import Belief
from secondsite.node.source.consistency import Quiet
from secondsite.node.source.group import Meeting
from secondsite.node.source.outcome import CycleOutcome
from secondsite.node.source.sizes import cut, grown
from secondsite.node.source.suspects import WithSuspects
from secondsite.node.source.window import require_window
from secondsite.ship.protocol import PartKind
from secondsite.ship.sender import Outgoing, Sender

log = structlog.get_logger(__name__)

_SPOOL: Final = 4 * PART_DATA_MAX


@dataclass(slots=True)
class _DiskParts:
    """What the parts of one disk add up to, in the order in which they were produced."""

    size: int
    logs: list[FileRef] = field(default_factory=list)
    zeros: list[FileRef] = field(default_factory=list)
    changed: int = 0


class Ports(Protocol):
    """What a cycle needs from the outside; the replicator wires it."""

    items: ItemStore
    clock: Callable[[], datetime]
    monotonic: Callable[[], float]

    def capture(self, record: ItemRecord) -> Capture: ...

    def meet(self, record: ItemRecord, consistency: Consistency) -> AbstractContextManager[Meeting]: ...

    def quiescer(self, record: ItemRecord) -> Quiescer | None: ...

    def tell(self, code: str, message: str) -> None: ...

    def definition(self, record: ItemRecord) -> VmDefinition: ...

    def sender(self, record: ItemRecord) -> Sender: ...

    def progress(self, done: int, total: int | None) -> None: ...

    def cancelled(self) -> bool: ...


class Cycle:
    """Runs cycles of one item; remembers between them whether the target's state is certain."""

    def __init__(self, ports: Ports, item: ItemRecord) -> None:
        self._ports = ports
        self._item = item.item
        self._folder = ports.items.folder(item.item)
        self._target = Belief(ports.items, item.item)
        self._certain = False
        self.quiet = Quiet(ports, item)
        self.kind = PointKind.DELTA

    def run(self, consistency: Consistency = Consistency.CRASH) -> CycleOutcome:
        """Run one cycle to an acknowledged point.

        Raises:
            StaleEpochError: another side took over; nothing may be replicated from here any more.
            ResyncRequiredError: whole disks would have to be compared, and may not be now.
            SecondSiteError: as the ports raise; the next `run` finds out what became of this one.
        """
        started = self._ports.monotonic()
        record = self._ports.items.get(self._item)
        self.quiet.thaw_leftover(record)
        if not self._certain:
            # First, before anything waits for the network: a snapshot that a dead process left costs the guest space.
            self._ports.capture(record).tidy()
        require_window(record, consistency, self._ports.clock())
        sender = self._ports.sender(record)
        if not self._certain:
            self._target.resolve(record, sender)
        self._certain = False
        self._clean_spool()
        record = self._ports.items.get(self._item)
        wire_before = sender.progress.view().wire
        try:
            outcome = self._cycle(record, sender, consistency, started, wire_before)
        finally:
            # Also what a cycle shipped in vain: these bytes are what the link carried.
            shipped = sender.progress.view().wire - wire_before
            self._ports.items.count(self._item, "bytes_shipped", shipped)
        self._certain = True
        return outcome

    # -- one cycle -------------------------------------------------------------------------------------

    def _cycle(
        self,
        record: ItemRecord,
        sender: Sender,
        consistency: Consistency,
        started: float,
        wire_before: int,
    ) -> CycleOutcome:
        name = f"ss-{uuid.uuid4().hex[:12]}"
        with ExitStack() as stack:
            meeting = stack.enter_context(self._ports.meet(record, consistency))
            still = meeting.capture(self._ports.capture(record))
            capture = self.quiet.capture(still, record, consistency)
            snapshot, record, suspects = self._snapshot(stack, capture, record, name, consistency)
            tables = stack.enter_context(self._target.tables(record))
            suspects = self._follow_sizes(record, snapshot, tables, suspects)
            self.kind = PointKind.RESYNC if suspects else _kind(record)
            if self.kind is PointKind.INITIAL:
                parts = self._ship_initial(record, sender, snapshot, tables)
                pending: list[Part] = []
            else:
                pending, parts = self._ship_changes(record, sender, snapshot, tables, suspects)
            # Raises if the bytes turn out not to be one instant: before anything is sealed.
            snapshot.close()
            manifest = self._manifest(record, snapshot, parts, capture.consistency, tables, meeting.labels)
            promise = self._target.promise_point(manifest, snapshot.checkpoint, pending)
            self._target.seal(sender, manifest)
            self._target.acknowledge(record, promise, manifest=manifest, tables=tables)
        self.quiet.sealed(record, capture)
        capture.forget(keep={promise.checkpoint} - {""})
        changed = sum(disk.changed for disk in parts.values())
        self._ports.items.count(record.item, "bytes_changed", changed)
        self._ports.items.count(record.item, "cycles")
        return CycleOutcome(
            self.kind,
            promise.sequence,
            promise.digest,
            manifest.time,
            changed,
            sender.progress.view().wire - wire_before,
            self._ports.monotonic() - started,
        )

    def _snapshot(
        self,
        stack: ExitStack,
        capture: Capture,
        record: ItemRecord,
        name: str,
        consistency: Consistency,
    ) -> tuple[Snapshot, ItemRecord, Mapping[DiskKey, Runs]]:
        since = (record.acked.checkpoint if record.acked else "") or None
        try:
            suspects = self._target.suspects() if since is not None else {}
            return stack.enter_context(capture.snapshot(since=since, new=name)), record, suspects
        except TrackingLostError as error:
            log.warning("tracking lost", item=record.item, reason=error.message)
            self._ports.items.count(record.item, "tracking_lost")
            assert record.acked is not None
            acked = Acked(record.acked.sequence, record.acked.digest, record.acked.time, checkpoint="")
            record = self._ports.items.change(record.item, acked=acked, tracking_lost=True)
            self._ports.tell("tracking-lost", f"{record.name}: {error.message}")
            require_window(record, consistency, self._ports.clock())
            return stack.enter_context(capture.snapshot(since=None, new=name)), record, {}

    def _follow_sizes(
        self,
        record: ItemRecord,
        snapshot: Snapshot,
        tables: Mapping[DiskKey, DigestTable],
        suspects: Mapping[DiskKey, Runs],
    ) -> Mapping[DiskKey, Runs]:
        """Have the tables grow with their disks; return the suspects with what resizes make of them."""
        found = grown(snapshot.disks, tables) | cut(snapshot.disks, tables, suspects, record.key)
        if not found:
            return suspects
        log.info("disks were resized", item=record.item, disks=sorted(found))
        if record.acked is not None and record.acked.checkpoint:
            suspects = self._target.suspect(found)  # before the tables, which then tell of it no more
        for disk in found:
            tables[disk].resize(snapshot.disks[disk].size)
        return suspects

    def _ship_initial(
        self,
        record: ItemRecord,
        sender: Sender,
        snapshot: Snapshot,
        tables: Mapping[DiskKey, DigestTable],
    ) -> dict[DiskKey, _DiskParts]:
        """Capture, ship and apply beside each other; one promise at a time is open. Disk by disk: two may have equal lists of zeros."""
        result = {}
        budget = SpoolBudget(_SPOOL)
        for disk in record.disks:
            state = result[disk] = _DiskParts(snapshot.disks[disk].size)
            under_way: dict[Digest, Part] = {}

            def parts(disk: DiskKey = disk, under_way: dict[Digest, Part] = under_way) -> Iterator[Outgoing]:
                for part in self._produce(sender, snapshot, disk, tables, Mode.COMPARE, budget):
                    under_way[part.digest] = part
                    yield _outgoing(part)

            def fold(
                sent: list[Outgoing],
                disk: DiskKey = disk,
                state: _DiskParts = state,
                under_way: dict[Digest, Part] = under_way,
            ) -> None:
                batch = [under_way.pop(part.digest) for part in sent]
                promise = self._target.promise_parts(batch)
                sender.apply_initial(disk, [part.digest for part in batch])
                self._target.applied(promise, tables)
                state.changed += sum(part.changed for part in batch)

            sender.send(parts(), lambda sent: _spooled_away(budget, sent), fold)
        return result

    def _ship_changes(
        self,
        record: ItemRecord,
        sender: Sender,
        snapshot: Snapshot,
        tables: Mapping[DiskKey, DigestTable],
        suspects: Mapping[DiskKey, Runs],
    ) -> tuple[list[Part], dict[DiskKey, _DiskParts]]:
        assert record.acked is not None
        mode = Mode.CHANGED if record.acked.checkpoint else Mode.COMPARE
        if self.kind is PointKind.RESYNC:
            self._ports.items.count(record.item, "resyncs")
        budget = SpoolBudget(_SPOOL)
        kept: list[Part] = []
        result = {disk: _DiskParts(snapshot.disks[disk].size) for disk in record.disks}

        def parts() -> Iterator[Outgoing]:
            for disk in record.disks:
                for part in self._produce(sender, snapshot, disk, tables, mode, budget, suspects.get(disk)):
                    state = result[disk]
                    (state.logs if part.kind == "hrl" else state.zeros).append(
                        FileRef(part.digest, part.length)
                    )
                    state.changed += part.changed
                    kept.append(part)
                    yield _outgoing(part)
            # All is read: let the guest's writes go without a copy while the rest is on the wire.
            snapshot.close()

        sender.send(parts(), lambda sent: _spooled_away(budget, sent))
        return kept, result

    def _produce(
        self,
        sender: Sender,
        snapshot: Snapshot,
        disk: DiskKey,
        tables: Mapping[DiskKey, DigestTable],
        mode: Mode,
        budget: SpoolBudget,
        suspects: Runs | None = None,
    ) -> Iterator[Part]:
        source = snapshot.disks[disk]
        return produce(
            source if suspects is None else WithSuspects(source, suspects),
            disk,
            tables[disk],
            mode,
            self._spool,
            digest_key=self._ports.items.get(self._item).key,
            time=snapshot.time,
            part_size=sender.suggested_part_size,
            passing=self.kind is PointKind.INITIAL,
            budget=budget,
            progress=self._ports.progress,
            # After an error nothing is sent any more, so nothing would make room in the spool.
            cancelled=lambda: self._ports.cancelled() or sender.failing,
        )

    def _manifest(
        self,
        record: ItemRecord,
        snapshot: Snapshot,
        parts: Mapping[DiskKey, _DiskParts],
        consistency: Consistency,
        tables: Mapping[DiskKey, DigestTable],
        labels: Mapping[str, str],
    ) -> Manifest:
        # The first point names no logs: the journal seals it only if its base is what our tables say it is.
        proven = tables if self.kind is PointKind.INITIAL else {}
        return Manifest(
            item=record.item,
            name=record.name,
            epoch=record.epoch,
            sequence=Sequence(record.acked.sequence + 1 if record.acked else 1),
            time=snapshot.time,
            consistency=consistency,
            kind=self.kind,
            previous=record.acked.digest if record.acked else None,
            disks={
                disk: DiskPoint(
                    size=state.size,
                    logs=tuple(state.logs),
                    zeros=_only(state.zeros),
                    changed=state.changed,
                )
                for disk, state in parts.items()
            },
            # From the fabric, not the snapshot: a machine that is locked for a failover is described unlocked.
            vm=self._ports.definition(record),
            labels={**labels, **{table_label(disk): table.fingerprint() for disk, table in proven.items()}},
        )

    # -- files -----------------------------------------------------------------------------------------

    @property
    def _spool(self) -> Path:
        return self._folder / "spool"

    def _clean_spool(self) -> None:
        self._spool.mkdir(exist_ok=True)
        for path in self._spool.iterdir():
            path.unlink(missing_ok=True)


def _outgoing(part: Part) -> Outgoing:
    return Outgoing(part.digest, PartKind(part.kind), part.path, part.length)


def _spooled_away(budget: SpoolBudget, sent: Outgoing) -> None:
    sent.path.unlink(missing_ok=True)
    budget.release(sent.length)


def _only(files: list[FileRef]) -> FileRef | None:
    """A point has one list of zero extents per disk; dropping a second one would corrupt it."""
    if len(files) > 1:
        raise CorruptError("a disk has more than one list of zero extents")
    return files[0] if files else None


def _kind(record: ItemRecord) -> PointKind:
    if record.acked is None:
        return PointKind.INITIAL
    return PointKind.DELTA if record.acked.checkpoint else PointKind.RESYNC
