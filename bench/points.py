"""Points made with the journal's own calls, without a source: for benchmarks that need a journal of many."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

from blake3 import blake3

from secondsite.hrl.writer import LogWriter
from secondsite.journal import Journal
from secondsite.model.ids import Digest, DiskKey, Epoch, Sequence
from secondsite.model.manifest import Consistency, DiskPoint, FileRef, Manifest, PointKind, VmDefinition
from secondsite.model.units import Buffer

EPOCH = Epoch(1)
DISK = DiskKey("vda")
TIME = datetime(2026, 11, 23, tzinfo=UTC)
NO_MACHINE = VmDefinition("libvirt", "<domain/>")


def put(journal: Journal, size: int, writes: Mapping[int, Buffer]) -> FileRef:
    """Receive a log of these writes, as a listener would."""
    log = io.BytesIO()
    writer = LogWriter(log, disk_size=size, unique_id=UUID(int=1), previous_id=None, time=TIME)
    for at, data in writes.items():
        writer.write(at, data)
    writer.close()
    content = log.getvalue()
    digest = Digest(blake3(content).hexdigest())
    with journal.receive(digest, "hrl") as incoming:
        incoming.write(content)
        incoming.commit()
    return FileRef(digest, len(content))


def seal(
    journal: Journal, number: int, previous: Digest | None, disk: DiskPoint, vm: VmDefinition = NO_MACHINE
) -> Digest:
    """Seal point `number`, 30 seconds after the one before."""
    kind = PointKind.INITIAL if previous is None else PointKind.DELTA
    manifest = Manifest(
        item=journal.item, name=journal.name, epoch=EPOCH, sequence=Sequence(number),
        time=TIME + timedelta(seconds=30 * number), consistency=Consistency.CRASH, kind=kind,
        previous=previous, disks={DISK: disk}, vm=vm,
    )  # fmt: skip
    return journal.seal(EPOCH, manifest.to_bytes())


@contextmanager
def unsynced() -> Iterator[None]:
    """While this holds, no fsync waits: for building what is measured only after it is complete."""
    real = os.fsync
    os.fsync = lambda _fd: None
    try:
        yield
    finally:
        os.fsync = real
        os.sync()
