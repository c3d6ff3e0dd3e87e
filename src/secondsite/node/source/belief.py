"""What the source believes the target to hold: digest tables, the last acknowledged point, and what is pending.

The tables are never ahead of the target. Before parts are applied to a base, or a point is sealed, the promise is
written down; after the acknowledgement the tables are advanced, and the promise goes. What a crash leaves is resolved by
asking the target: if its last point is the promised one the promise is kept, if it is the one before it is dropped,
and if it is another the tables are fetched from the target, and what differs from ours is looked at again (see
suspects.py). Blocks of parts that may or may not have been applied become unknown: they are shipped again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import blake3
import numpy as np
import structlog
from numpy.typing import NDArray

from secondsite import durable
from secondsite.blocks import DigestTable
from secondsite.capture.parts import Part
from secondsite.capture.pending import PendingRecord
from secondsite.capture.runs import RunList, Runs, true_runs
from secondsite.errors import (
    CorruptError,
    OutOfSequenceError,
    SecondSiteError,
    StaleEpochError,
    TrackingLostError,
)
from secondsite.model.ids import Digest, DiskKey, ItemId, Sequence, parse_digest
from secondsite.model.manifest import Manifest, PointKind, format_time
from secondsite.model.units import BLOCK
from secondsite.node.records import Acked, ItemRecord, ItemStore, Role
from secondsite.node.source.suspects import Suspects
from secondsite.ship.protocol import CellRange, LastPoint
from secondsite.ship.sender import Sender

log = structlog.get_logger(__name__)

_FETCH_CELLS: Final = 1 << 20


class Belief:
    """See the module's docstring. One per item; for one thread at a time."""

    def __init__(self, items: ItemStore, item: ItemId) -> None:
        self._items = items
        self._folder = items.folder(item)
        self._base_doubted = False
        self._suspects = Suspects(self._folder / "suspects")

    def suspects(self) -> Mapping[DiskKey, Runs]:
        """Return the blocks that a cycle must look at although its bitmap does not name them."""
        try:
            return self._suspects.load()
        except CorruptError as error:
            raise TrackingLostError(
                "what the target's last point differs in is not known any more"
            ) from error

    def suspect(self, found: Mapping[DiskKey, Runs]) -> Mapping[DiskKey, Runs]:
        """Have these blocks looked at too until a point is acknowledged, durably; return all that are."""
        if not self._suspect(found):  # too scattered: one run for each disk
            self._suspect({disk: np.array([[0, runs.max()]], np.int64) for disk, runs in found.items()})
        return self.suspects()

    def tables(self, record: ItemRecord) -> OpenTables:
        """Return the item's digest tables, to be opened by `with`."""
        return OpenTables(self._folder / "digests", record)

    # -- promises ----------------------------------------------------------------------------------------

    def promise_parts(self, parts: list[Part]) -> PendingRecord:
        """Write down which blocks are about to be applied to the base."""
        promise = PendingRecord.of(Sequence(0), Digest(""), "", parts)
        promise.save(self._pending_path)
        return promise

    def applied(self, promise: PendingRecord, tables: Mapping[DiskKey, DigestTable]) -> None:
        """The target has applied the parts, durably."""
        promise.apply(tables)
        PendingRecord.discard(self._pending_path)

    def promise_point(self, manifest: Manifest, checkpoint: str, parts: list[Part]) -> PendingRecord:
        """Write down which point is about to be sealed, and what it makes of the tables."""
        data = manifest.to_bytes()
        digest = parse_digest(blake3.blake3(data).hexdigest())
        promise = PendingRecord.of(manifest.sequence, digest, checkpoint, parts)
        durable.write_atomic(self._folder / "manifest.pending", data)
        promise.save(self._pending_path)
        return promise

    def seal(self, sender: Sender, manifest: Manifest) -> None:
        """Have the point sealed. A first point that the target refuses casts doubt on what its base holds."""
        try:
            sender.seal(manifest.to_bytes())
        except SecondSiteError as error:
            if manifest.kind is PointKind.INITIAL and error.code == OutOfSequenceError.code:
                self._base_doubted = True
            raise

    def acknowledge(
        self,
        record: ItemRecord,
        promise: PendingRecord,
        *,
        manifest: Manifest | None = None,
        tables: Mapping[DiskKey, DigestTable] | None = None,
    ) -> None:
        """The target holds the point: advance the tables, then say so. Every step may be repeated."""
        if tables is None:
            with self.tables(record) as opened:
                promise.apply(opened)
        else:
            promise.apply(tables)
        if manifest is None:
            manifest = Manifest.from_bytes((self._folder / "manifest.pending").read_bytes())
        durable.write_atomic(self._folder / "manifest.json", manifest.to_bytes())
        # An order to compare that came while another cycle's point was under way is not done yet.
        compare = record.compare and manifest.kind is not PointKind.RESYNC
        checkpoint = "" if compare else promise.checkpoint
        acked = Acked(promise.sequence, promise.digest, format_time(manifest.time), checkpoint)
        self._items.change(record.item, acked=acked, compare=compare, tracking_lost=False)
        self._suspects.clear()
        PendingRecord.discard(self._pending_path)

    # -- after a failure or a restart ----------------------------------------------------------------------

    def resolve(self, record: ItemRecord, sender: Sender) -> None:
        """Find out what became of what was promised, and make the tables and the record true.

        Raises StaleEpochError if another side took over, OutOfSequenceError if the target lost its journal.
        """
        remote = sender.status()
        if remote.epoch != record.epoch:
            raise StaleEpochError(
                f"{record.name} is at epoch {record.epoch} here and at {remote.epoch} at the target",
                item=record.item,
                role=Role.TARGET.value,
                epoch=record.epoch,
                current=remote.epoch,
            )
        last = remote.last
        if last is None and self._base_doubted:
            # A late part came over newer data: learn what the base holds, and ship what differs.
            log.warning("the target's base is not what was shipped to it", item=record.item)
            self._items.count(record.item, "relearned")
            self._learn_base(record, sender)
        elif last is None and record.seeded:
            self._learn_base(record, sender)
            # A cut before this fetches again. Later the table here is kept up by what is shipped.
            self._items.change(record.item, seeded=False)
        try:
            pending = PendingRecord.load(self._pending_path)
        except TrackingLostError as error:
            self._pending_damaged(record, sender, error)
            return
        if pending is not None and pending.sequence and last is not None and last.digest == pending.digest:
            self.acknowledge(record, pending)
            return
        if pending is not None and not pending.sequence:
            # Parts of an unsealed initial replication may or may not be in the base: ship those blocks again.
            with self.tables(record) as tables:
                pending.mark_unknown(tables)
        if record.acked is None or (last is not None and last.digest == record.acked.digest):
            if record.acked is None and last is not None:
                self._relearn(record, sender, last)
            PendingRecord.discard(self._pending_path)
            return
        if last is None:
            raise OutOfSequenceError(
                f"the target has no point of {record.name}, although it acknowledged {record.acked.sequence}",
                hint="its journal was lost or replaced: disable the item and protect its machine again",
                item=record.item,
            )
        self._relearn(record, sender, last)

    def _pending_damaged(self, record: ItemRecord, sender: Sender, error: TrackingLostError) -> None:
        log.warning("the pending record is damaged", item=record.item, error=error.to_dict())
        last = sender.status().last
        if last is not None:
            self._relearn(record, sender, last, checkpoint="")
            return
        # No point was sealed yet: nobody knows what of the base was written. Ship everything again.
        with self.tables(record) as tables:
            for table in tables.values():
                table.mark_unknown(0, -(-table.disk_size // BLOCK))
                table.sync()
        PendingRecord.discard(self._pending_path)

    def _relearn(
        self, record: ItemRecord, sender: Sender, last: LastPoint, *, checkpoint: str | None = None
    ) -> None:
        """The target's last point is not one we know: fetch its digests, and look at what differs from ours.

        Our bitmap still tells what the machine wrote since the point that our tables describe. Where the target's
        digests differ from theirs, its point differs from that one. Nothing else can differ.
        """
        log.warning("the target's last point is unknown here", item=record.item, sequence=last.sequence)
        self._items.count(record.item, "relearned")
        if checkpoint is None:
            checkpoint = record.acked.checkpoint if record.acked else ""
        fetched = {disk: self._fetch(record, sender, disk) for disk in record.disks}
        if checkpoint and not self._suspect({disk: found.differs for disk, found in fetched.items()}):
            checkpoint = ""
        for disk, found in fetched.items():
            durable.rename_durable(found.path, self._folder / "digests" / f"{disk}.tbl")
        acked = Acked(last.sequence, last.digest, format_time(last.time), checkpoint)
        self._items.change(record.item, acked=acked)
        PendingRecord.discard(self._pending_path)

    def _suspect(self, found: Mapping[DiskKey, Runs]) -> bool:
        try:
            return self._suspects.add(found)
        except CorruptError as error:
            log.warning("comparing everything", error=error.to_dict())
            return False

    def _fetch(self, record: ItemRecord, sender: Sender, disk: DiskKey) -> _Fetched:
        """Fetch what the target holds at its last point into a table beside ours."""
        ours = self._folder / "digests" / f"{disk}.tbl"
        path = ours.with_name(f"{disk}.fetched")
        path.unlink(missing_ok=True)
        differs = RunList()
        with DigestTable.open(ours, record.key) as table:
            DigestTable.create(path, table.disk_size, record.key).close()
            with DigestTable.open(path, record.key, writable=True) as new:
                for first, digests in _fetched(sender, disk, table.disk_size):
                    differs.extend(true_runs(digests != table.get(first, len(digests))) + first)
                    if digests.any():
                        new.put(first, digests)
                new.sync()
        return _Fetched(path, differs.merged())

    def _learn_base(self, record: ItemRecord, sender: Sender) -> None:
        """Fetch what the target's base holds, which has no point yet."""
        PendingRecord.discard(self._pending_path)
        with self.tables(record) as tables:
            for disk, table in tables.items():
                _fetch_table(sender, disk, table)
        self._base_doubted = False

    @property
    def _pending_path(self) -> Path:
        return self._folder / "pending"


@dataclass(frozen=True, slots=True, eq=False)
class _Fetched:
    """A table that was fetched, and the blocks in which it differs from ours."""

    path: Path
    differs: Runs


class OpenTables:
    """The writable digest tables of an item's disks, for the length of a `with`."""

    def __init__(self, folder: Path, record: ItemRecord) -> None:
        self._folder = folder
        self._record = record
        self._stack = ExitStack()

    def __enter__(self) -> dict[DiskKey, DigestTable]:
        with ExitStack() as stack:
            tables = {
                disk: stack.enter_context(
                    DigestTable.open(self._folder / f"{disk}.tbl", self._record.key, writable=True)
                )
                for disk in self._record.disks
            }
            self._stack = stack.pop_all()
        return tables

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def _fetch_table(sender: Sender, disk: DiskKey, table: DigestTable) -> None:
    """Fill a table with what the target's base holds."""
    for first, digests in _fetched(sender, disk, table.disk_size):
        if digests.any():
            table.put(first, digests)
        else:
            table.fill_zero(first, len(digests))
    table.sync()


def _fetched(sender: Sender, disk: DiskKey, disk_size: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield the target's digests of a disk, piece by piece."""
    cells = -(-disk_size // BLOCK)
    first = 0
    ranges = [CellRange(at, min(_FETCH_CELLS, cells - at)) for at in range(0, cells, _FETCH_CELLS)]
    for data in sender.digests(disk, ranges):
        digests = np.frombuffer(data, dtype="<u8")
        yield first, digests
        first += len(digests)
