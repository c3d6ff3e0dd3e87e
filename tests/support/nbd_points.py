"""Small journals with real points, for tests that serve them. The model's disks say what each point holds."""

from __future__ import annotations

import io
import random
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from blake3 import blake3

from secondsite.hrl.writer import LogWriter
from secondsite.journal import Journal
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, Sequence
from secondsite.model.manifest import Consistency, DiskPoint, FileRef, Manifest, PointKind, VmDefinition

ITEM = ItemId("6f1c1a52-8f0e-4a6a-9d53-0a4f6a2f2b11")
KEY = bytes(range(32))
EPOCH = Epoch(1)
_TIME = datetime(2026, 11, 23, 5, tzinfo=UTC)
MIB = 1 << 20


def put(journal: Journal, disk_size: int, writes: dict[int, bytes]) -> tuple[FileRef, ...]:
    """Send one log with these writes to the journal."""
    if not writes:
        return ()
    file = io.BytesIO()
    writer = LogWriter(file, disk_size=disk_size, unique_id=UUID(int=1), previous_id=None, time=_TIME)
    for offset in sorted(writes):
        writer.write(offset, writes[offset])
    writer.close()
    data = file.getvalue()
    digest = Digest(blake3(data).hexdigest())
    with journal.receive(digest, "hrl") as incoming:
        incoming.write(data)
        incoming.commit()
    return (FileRef(digest, len(data)),)


class History:
    """Seals random points and remembers, for each sequence, what every disk holds."""

    def __init__(self, journal: Journal, seed: int = 1) -> None:
        self.journal = journal
        self.points: dict[int, dict[DiskKey, bytes]] = {}
        self._random = random.Random(seed)
        self._now = {disk: bytes(size) for disk, size in journal.disks.items()}
        self._previous: Digest | None = None
        self._sequence = 0

    def initial(self) -> None:
        """Replicate random contents initially and seal the first point."""
        for disk, size in self.journal.disks.items():
            writes = self._change(disk)
            parts = put(self.journal, size, writes)
            self.journal.apply_initial(EPOCH, disk, [part.digest for part in parts])
        self._seal(PointKind.INITIAL, dict.fromkeys(self.journal.disks, ()))

    def resume(self, manifest: bytes, contents: dict[DiskKey, bytes]) -> None:
        """Go on after a point that the journal was made from."""
        self._previous = Digest(blake3(manifest).hexdigest())
        self._sequence = Manifest.from_bytes(manifest).sequence
        self._now = dict(contents)
        self.points[self._sequence] = dict(contents)

    def delta(self) -> None:
        """Change every disk and seal a point."""
        logs = {
            disk: put(self.journal, size, self._change(disk)) for disk, size in self.journal.disks.items()
        }
        self._seal(PointKind.DELTA, logs)

    def _change(self, disk: DiskKey) -> dict[int, bytes]:
        now = bytearray(self._now[disk])
        writes: dict[int, bytes] = {}
        at = self._random.randrange(0, 16) * 4096
        while at < len(now):
            length = min(self._random.choice([1, 2, 7]) * 4096, len(now) - at)
            writes[at] = self._random.randbytes(length)
            now[at : at + length] = writes[at]
            at += length + self._random.randrange(1, 40) * 4096
        self._now[disk] = bytes(now)
        return writes

    def _seal(self, kind: PointKind, logs: dict[DiskKey, tuple[FileRef, ...]]) -> None:
        self._sequence += 1
        manifest = manifest_of(
            self._sequence, kind, self._previous,
            {disk: DiskPoint(size, logs[disk]) for disk, size in self.journal.disks.items()},
        )  # fmt: skip
        self._previous = self.journal.seal(EPOCH, manifest)
        self.points[self._sequence] = dict(self._now)


def manifest_of(
    sequence: int, kind: PointKind, previous: Digest | None, disks: dict[DiskKey, DiskPoint]
) -> bytes:
    """The bytes of a manifest."""
    return Manifest(
        item=ITEM, name="web", epoch=EPOCH, sequence=Sequence(sequence), time=_TIME,
        consistency=Consistency.CRASH, kind=kind, previous=previous, disks=disks,
        vm=VmDefinition("libvirt", "<domain/>"),
    ).to_bytes()  # fmt: skip


def fresh_journal(path: Path) -> Journal:
    """A journal with two disks, one of them not a multiple of 4 KiB."""
    disks = {DiskKey("vda"): 4 * MIB, DiskKey("vdb"): MIB + 512}
    return Journal.create(path, item=ITEM, name="web", epoch=EPOCH, key=KEY, disks=disks)
