"""The old side becomes the target: its disks, as they are, are the base of the item's new journal.

Disks that nobody wrote to since the last point was sealed *are* that point. Of any others (the machine ran beside the
other side's, or somebody wrote to them, or an earlier try was cut and nobody knows) nothing is assumed and nothing is
thrown away: what they hold is read, sealed as the journal's first point, of kind "diverged", and pinned until an
operator gives it up. The new source does not know that point; it compares and ships what differs.

Each step may be repeated; the record says how far a try came:

1. the disks are looked at; from here the record says which images they are, and has no marks: our own writes follow.
2. the machine's definition is kept in the item's folder, the machine undefined, our bitmaps removed.
3. untouched disks are marked anew, so that a retry can tell again; of others the digests are computed.
4. the journal appears. A retry that finds it goes on with 5.
5. a diverged point is pinned; the role is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog

from secondsite import durable
from secondsite.blocks import DigestTable, block_digests
from secondsite.capture.bitmaps import QCOW2, image_info
from secondsite.errors import ConflictError, NotFoundError, OperationRefusedError
from secondsite.fabric.port import LIBVIRT_FORMAT, Fabric, VmInfo
from secondsite.journal import Journal
from secondsite.journal.base import Base, BaseSpec, OpenBase
from secondsite.model.ids import DiskKey, Epoch, ItemId, Sequence
from secondsite.model.manifest import Consistency, DiskPoint, Manifest, PointKind, VmDefinition, format_time
from secondsite.model.policy import Policy
from secondsite.model.units import BLOCK, MIB
from secondsite.node.config import Folders
from secondsite.node.executor import Progress
from secondsite.node.images import OldDisks, is_image, old_disks, release_images
from secondsite.node.records import ItemRecord, ItemStore, Peer, Role, require_role
from secondsite.node.target.journals import Journals

DIVERGED_PIN: Final = "diverged"
REASON_LABEL: Final = "diverged"
_CHUNK: Final = 4 * MIB

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Adoption:
    """See the module's docstring. The caller holds the item's lock."""

    items: ItemStore
    journals: Journals
    fabric: Fabric
    folders: Folders
    open_base: OpenBase
    clock: Callable[[], datetime]

    def adopt(
        self, item: ItemId, epoch: Epoch, source: Peer, policy: Policy, after: Sequence, progress: Progress
    ) -> Mapping[str, Any]:
        """Become the target of `source` under `epoch`. `after`: the highest sequence that the service knows of.

        Raises:
            ConflictError: the machine's disks are others than those that were protected, or it runs.
        """
        record = self.items.get(item)
        require_role(record, Role.STANDBY, Role.TARGET)
        if epoch > record.epoch:
            # Stepped down for a failover whose point was changed afterwards: each change raised the epoch.
            record = self.items.change(item, epoch=epoch)
        if record.role is Role.STANDBY:
            if not self.journals.exists(item):
                self._make(record, after, progress)
            self.journals.get(item).raise_epoch(record.epoch)
            kept = self._kept(item)
            if kept is not None:
                self.journals.get(item).pin(kept.sequence, DIVERGED_PIN)
            self.items.change(
                item,
                role=Role.TARGET,
                vm="",
                acked=None,
                failover=None,
                marks={},
                ran=False,
                diverged=False,
                peer=source,
                policy=policy,
            )
            self._forget_source(item)
        return self._answer(item)

    def drop(self, item: ItemId) -> None:
        """Let retention give up the diverged point. Idempotent."""
        if self.journals.exists(item):
            self.journals.get(item).unpin(DIVERGED_PIN)

    def require_dropped(self, record: ItemRecord) -> None:
        """Raise OperationRefusedError if the journal still keeps a diverged point, which nobody else has."""
        if not self.journals.exists(record.item):
            return
        for pin in self.journals.get(record.item).pins():
            if pin.owner == DIVERGED_PIN:
                raise OperationRefusedError(
                    f"point {pin.sequence} of {record.name} keeps what only its old side had written, and would be removed",
                    hint=f"look at it, then give it up: secondsite point drop-diverged {record.name}",
                    item=record.item,
                    sequence=pin.sequence,
                )

    # -- looking -----------------------------------------------------------------------------------------

    def _look(self, record: ItemRecord, vm: VmInfo | None) -> tuple[OldDisks, str | None]:
        """Return the disks, and why they may not be exactly the last point (None: they are)."""
        if vm is not None:
            disks = old_disks(vm, record.disks)
        elif record.images:
            disks = OldDisks(record.images, record.formats)
        else:
            raise ConflictError(
                f"the machine of {record.name} is gone, and with it the knowledge of its disks",
                hint="disable the item and protect the machine again",
                item=record.item,
            )
        moved = [disk for disk, path in record.images.items() if disks.images.get(disk) != path]
        missing = [disk for disk, path in disks.images.items() if not is_image(Path(path))]
        if moved or missing:
            disk = min({*moved, *missing})
            raise ConflictError(
                f"disk {disk} of {record.name} is not the image that it was: {disks.images[disk]}",
                hint="undo the snapshot or the move, or disable the item and protect the machine again",
                item=record.item,
                disk=disk,
            )
        if record.diverged:
            return disks, "the machine was not shut down for its last point"
        if not record.marks:
            return disks, "an earlier reversal was cut after it had looked at the disks"
        marks = disks.marks()
        changed = sorted(disk for disk in record.disks if marks.get(disk) != record.marks.get(disk))
        if changed:
            return disks, f"written to after the last point was sealed: {', '.join(changed)}"
        return disks, None

    # -- the journal -------------------------------------------------------------------------------------

    def _make(self, record: ItemRecord, after: Sequence, progress: Progress) -> None:
        item, folder = record.item, self.items.folder(record.item)
        vm = self._machine(record)
        disks, reason = self._look(record, vm)
        for disk in record.disks if reason is not None else ():
            self._check_size(record, disks, disk)  # before anything is changed
        if reason is not None:
            log.warning("the old disks are not known to be the last point", item=item, reason=reason)
        record = self.items.change(
            item, images=disks.images, formats=disks.formats, marks={}, diverged=reason is not None
        )
        if vm is not None:
            definition = self.fabric.definition(record.vm)
            durable.write_atomic(folder / "machine.xml", definition.text.encode())
            # Nobody may start the machine on disks that are about to follow the other side.
            self.fabric.undefine(record.vm, keep_disks=True)
        paths = {disk: Path(path) for disk, path in disks.images.items()}
        release_images(paths, disks.formats, self.folders.run)
        if reason is None:
            self.items.change(item, marks=disks.marks())
            manifest = (folder / "manifest.json").read_bytes()
            tables = {disk: folder / "digests" / f"{disk}.tbl" for disk in record.disks}
        else:
            tables = self._digest(record, disks, progress)
            manifest = self._manifest(record, tables, reason, after).to_bytes()
        Journal.adopt(
            self.folders.journal(item),
            manifest=manifest,
            epoch=record.epoch,
            key=record.key,
            images=paths,
            tables=tables,
            open_base=self.open_base,
            formats=disks.formats,
        ).close()

    def _digest(self, record: ItemRecord, disks: OldDisks, progress: Progress) -> dict[DiskKey, Path]:
        """Compute the digest tables of the disks as they are. A local read of what is allocated."""
        folder = self.items.folder(record.item) / "diverged"
        durable.remove_tree(folder)  # of a try that was cut: somebody may have written since
        folder.mkdir()
        sizes = {disk: self._size(record, disk) for disk in record.disks}
        tables, done = {}, 0
        for disk in record.disks:
            tables[disk] = folder / f"{disk}.tbl"
            spec = BaseSpec("image", Path(disks.images[disk]), disks.formats.get(disk, QCOW2), sizes[disk])
            base = self.open_base(spec, False)
            try:
                write_table(
                    base,
                    tables[disk],
                    record.key,
                    lambda at, before=done: progress(  # type: ignore[misc]
                        None, "reading the old disks", bytes_done=before + at, bytes_total=sum(sizes.values())
                    ),
                )
            finally:
                base.close()
            done += sizes[disk]
        return tables

    def _size(self, record: ItemRecord, disk: DiskKey) -> int:
        with DigestTable.open(
            self.items.folder(record.item) / "digests" / f"{disk}.tbl", record.key
        ) as table:
            return table.disk_size

    def _check_size(self, record: ItemRecord, disks: OldDisks, disk: DiskKey) -> None:
        """The other side's disk has the size of the last point: no journal can follow two sizes."""
        expected = self._size(record, disk)
        found = image_info(Path(disks.images[disk]), disks.formats.get(disk, QCOW2)).size
        if found != expected:
            raise ConflictError(
                f"disk {disk} of {record.name} has {found} bytes now, and had {expected} at its last point",
                hint="disable the item and protect the machine again",
                item=record.item,
                disk=disk,
            )

    def _manifest(
        self, record: ItemRecord, tables: Mapping[DiskKey, Path], reason: str, after: Sequence
    ) -> Manifest:
        folder = self.items.folder(record.item)
        known = record.acked.sequence if record.acked else 0
        if (folder / "pending").exists():
            known += 1  # the other side may have sealed what was never acknowledged
        return Manifest(
            item=record.item,
            name=record.name,
            epoch=record.epoch,
            sequence=Sequence(max(after, known) + 1),
            time=self.clock(),
            consistency=Consistency.CRASH,
            kind=PointKind.DIVERGED,
            previous=record.acked.digest if record.acked else None,
            disks={disk: DiskPoint(self._size(record, disk)) for disk in tables},
            vm=VmDefinition(LIBVIRT_FORMAT, (folder / "machine.xml").read_text()),
            labels={REASON_LABEL: reason},
        )

    # -- facts -------------------------------------------------------------------------------------------

    def _machine(self, record: ItemRecord) -> VmInfo | None:
        try:
            return self.fabric.find(record.vm)
        except NotFoundError:
            return None

    def _kept(self, item: ItemId) -> Manifest | None:
        journal = self.journals.get(item)
        for point in journal.points():
            if point.kind is PointKind.DIVERGED:
                return journal.manifest(point.sequence)
        return None

    def _answer(self, item: ItemId) -> dict[str, Any]:
        kept = self._kept(item)
        if kept is None:
            return {"base": "point"}
        points = self.journals.get(item).points()
        return {
            "base": "diverged",
            "sequence": kept.sequence,
            "digest": next(point.digest for point in points if point.sequence == kept.sequence),
            "time": format_time(kept.time),
            "reason": kept.labels.get(REASON_LABEL, ""),
        }

    def _forget_source(self, item: ItemId) -> None:
        """Remove what only a source needs: what it had promised, and tables that have no use any more."""
        folder = self.items.folder(item)
        for name in ("pending", "manifest.pending", "suspects"):
            (folder / name).unlink(missing_ok=True)
        for name in ("diverged", "spool"):
            durable.remove_tree(folder / name)


def write_table(base: Base, path: Path, key: bytes, progress: Callable[[int], None]) -> None:
    """Write the digest table of a base to a new file, durably. Reads what may hold data; tells the offset reached."""
    DigestTable.create(path, base.size, key).close()
    buffer = memoryview(bytearray(_CHUNK))
    with DigestTable.open(path, key, writable=True) as table:
        for offset, length in base.data_extents(0, base.size):
            end = min(-(-(offset + length) // BLOCK) * BLOCK, base.size)
            for at in range(offset // BLOCK * BLOCK, end, _CHUNK):
                chunk = buffer[: min(_CHUNK, end - at)]
                base.readinto(at, chunk)
                table.put(at // BLOCK, block_digests(chunk, key))
                progress(at + len(chunk))
        table.sync()
