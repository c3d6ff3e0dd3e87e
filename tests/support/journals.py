"""A source of recovery points with a model of what every point must hold."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blake3 import blake3

from secondsite.hrl.writer import LogWriter
from secondsite.hrl.zeros import encode_zeros
from secondsite.journal import Journal, OpenBase, open_raw_base
from secondsite.model import ids
from secondsite.model.manifest import (
    Consistency,
    DiskPoint,
    FileRef,
    Manifest,
    PointKind,
    VmDefinition,
)

ITEM = ids.ItemId("6f1f4a3e-0000-4000-8000-000000000001")
KEY = bytes(range(32))
VDA = ids.DiskKey("vda")
VDB = ids.DiskKey("vdb")
START = datetime(2026, 1, 1, tzinfo=UTC)
VM = VmDefinition("libvirt", "<domain/>")

Write = tuple[int, bytes | int]
"""At an offset: bytes, or a length of zeros."""


def digest_of(data: bytes) -> ids.Digest:
    return ids.Digest(blake3(data).hexdigest())


def log_bytes(size: int, writes: Sequence[tuple[int, bytes]], *, unique: int = 1) -> bytes:
    """Return a closed log; `unique` makes otherwise equal logs differ."""
    buffer = io.BytesIO()
    writer = LogWriter(
        buffer,
        disk_size=size,
        unique_id=uuid.UUID(int=unique),
        previous_id=None,
        time=START,
        metadata_size=512,
    )
    for offset, data in writes:
        writer.write(offset, data)
    writer.close()
    return buffer.getvalue()


class Model:
    """Plays the source: writes to disks, ships parts, seals points, and remembers what each point holds."""

    def __init__(self, sizes: Mapping[ids.DiskKey, int] | None = None) -> None:
        self.sizes = dict(sizes or {VDA: 64 << 10, VDB: 22 << 10})
        self.disks = {disk: bytearray(size) for disk, size in self.sizes.items()}
        self.contents: dict[int, dict[ids.DiskKey, bytes]] = {}
        self.epoch = ids.Epoch(1)
        self.sequence = 0
        self.previous: ids.Digest | None = None
        self.unique = 0

    def create(self, path: Path, open_base: OpenBase = open_raw_base) -> Journal:
        return Journal.create(
            path, item=ITEM, name="web", epoch=self.epoch, key=KEY, disks=self.sizes, open_base=open_base
        )

    # -- the source's disks

    def write(self, disk: ids.DiskKey, write: Write) -> None:
        offset, data = write
        self.disks[disk][offset : offset + _length(data)] = bytes(data)

    def parts(self, disk: ids.DiskKey, writes: Sequence[Write]) -> list[tuple[str, bytes]]:
        """Return (kind, bytes) of files that hold `writes`, and play them on the model. They must be disjoint."""
        for write in writes:
            self.write(disk, write)
        data = [(offset, value) for offset, value in writes if isinstance(value, bytes)]
        zeros = [(offset, value) for offset, value in writes if isinstance(value, int)]
        files: list[tuple[str, bytes]] = []
        if data:
            self.unique += 1
            files.append(("hrl", log_bytes(self.sizes[disk], data, unique=self.unique)))
        if zeros:
            files.append(("zeros", encode_zeros(zeros)))
        return files

    # -- the journal

    def send(self, journal: Journal, parts: Sequence[tuple[str, bytes]]) -> list[ids.Digest]:
        digests = []
        for kind, data in parts:
            digest = digest_of(data)
            digests.append(digest)
            with journal.receive(digest, kind) as incoming:  # type: ignore[arg-type]
                incoming.write(data)
                incoming.commit()
        return digests

    def replicate_initially(self, journal: Journal, changes: Mapping[ids.DiskKey, Sequence[Write]]) -> None:
        for disk, writes in changes.items():
            journal.apply_initial(self.epoch, disk, self.send(journal, self.parts(disk, writes)))

    def manifest(
        self,
        files: Mapping[ids.DiskKey, Sequence[tuple[str, bytes]]],
        *,
        kind: PointKind | None = None,
        time: datetime | None = None,
    ) -> Manifest:
        """Return the next point's manifest; `sealed` is to follow."""
        sequence = ids.Sequence(self.sequence + 1)
        disks = {}
        for disk, size in self.sizes.items():
            refs = [(name, FileRef(digest_of(data), len(data))) for name, data in files.get(disk, ())]
            zeros = [ref for name, ref in refs if name == "zeros"]
            logs = tuple(ref for name, ref in refs if name == "hrl")
            disks[disk] = DiskPoint(size, logs, zeros[0] if zeros else None, sum(ref.length for ref in logs))
        return Manifest(
            item=ITEM,
            name="web",
            epoch=self.epoch,
            sequence=sequence,
            time=time or START + timedelta(minutes=sequence),
            consistency=Consistency.CRASH,
            kind=kind or (PointKind.INITIAL if self.previous is None else PointKind.DELTA),
            previous=self.previous,
            disks=disks,
            vm=VM,
        )

    def sealed(self, manifest: Manifest, digest: ids.Digest) -> None:
        """Remember that the point was acknowledged."""
        self.sequence = manifest.sequence
        self.previous = digest
        self.contents[manifest.sequence] = {disk: bytes(data) for disk, data in self.disks.items()}

    def seal(
        self,
        journal: Journal,
        changes: Mapping[ids.DiskKey, Sequence[Write]],
        *,
        time: datetime | None = None,
    ) -> ids.Sequence:
        """Change the disks, ship the changes and seal a point."""
        files = {disk: self.parts(disk, writes) for disk, writes in changes.items()}
        for parts in files.values():
            self.send(journal, parts)
        manifest = self.manifest(files, time=time)
        self.sealed(manifest, journal.seal(self.epoch, manifest.to_bytes()))
        return manifest.sequence

    def check(self, journal: Journal, *, verify: bool = False) -> None:
        """Every point that the journal offers reads as the model remembers it."""
        for point in journal.points():
            with journal.view(point.sequence, purpose="test", verify=verify) as view:
                for disk, expected in self.contents[point.sequence].items():
                    assert view.disks[disk].read(0, view.disks[disk].size) == expected, (point.sequence, disk)


def _length(data: bytes | int) -> int:
    return data if isinstance(data, int) else len(data)


def filled(journal_path: Path, points: int = 5) -> tuple[Model, Journal]:
    """A journal with an initial replication and some points, with data and zeros, whole blocks and parts of them."""
    model = Model()
    journal = model.create(journal_path)
    model.replicate_initially(
        journal,
        {
            VDA: [(0, b"A" * 16384), (32768, b"B" * 4096)],
            VDB: [(20480, b"end of vdb, a short block!".ljust(2048, b"."))],
        },
    )
    model.seal(journal, {})
    for number in range(2, points + 1):
        fill = bytes([64 + number])
        model.seal(
            journal,
            {
                VDA: [(number * 4096, fill * 4096), (40960 + number * 512, fill * 512), (0, 4096)],
                VDB: [((number % 5) * 4096, fill * 8192 if number % 5 < 4 else fill * 4096)],
            },
        )
    return model, journal
