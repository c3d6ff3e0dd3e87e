"""How many bytes a day of recovery points takes on disk, against the sum of the 4 KiB blocks that changed.

A journal is fed for 26 hours of an injected clock by what feeds it in production: `produce` cuts logs from a disk's changed blocks, the
journal receives and seals them, and retention (the default policy, 24 hours) runs once an hour, so the first hours are folded into
the base. Every changed block holds random bytes, which nothing can make smaller. Counted are the blocks that the journal's folder
takes, directories included, but for the base, against the points that it still holds.

    python bench/stored.py [--blocks 1000] [--frequency 300]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from report import Row, say

from secondsite.blocks import DigestTable
from secondsite.capture.parts import Mode, Part, produce
from secondsite.capture.port import Extent
from secondsite.journal import Journal
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, Sequence
from secondsite.model.manifest import Consistency, DiskPoint, FileRef, Manifest, PointKind, VmDefinition
from secondsite.model.policy import Policy
from secondsite.model.units import BLOCK, GIB, MIB

BOUND = 1.05
HOURS = 26
SIZE = 64 * GIB
VDA = DiskKey("vda")
ITEM, EPOCH, KEY = ItemId("00000000-0000-4000-8000-000000000001"), Epoch(1), bytes(range(32))
START = datetime(2026, 11, 23, tzinfo=UTC)
DEFINITION = VmDefinition(
    "libvirt", "<domain>" + "<!-- as long as a usual machine's definition -->" * 90 + "</domain>"
)


class Churned:
    """A disk of which some blocks changed since the last point: scattered, of random bytes."""

    size, whole, device = SIZE, False, False

    def __init__(self, rng: np.random.Generator, blocks: int) -> None:
        self._rng = rng
        self._blocks = np.unique(rng.integers(0, SIZE // BLOCK, blocks))

    def changed(self) -> Iterator[Extent]:
        for block in self._blocks.tolist():
            yield Extent(block * BLOCK, BLOCK, False)

    def read(self, extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        for offset, length in extents:
            yield offset, memoryview(self._rng.bytes(length))


class Feed:
    """Makes points as a source does, and takes them as a target does."""

    def __init__(self, folder: Path, frequency_s: int) -> None:
        self.policy = Policy(copy_frequency_s=frequency_s)
        self.journal = Journal.create(
            folder / "journal", item=ITEM, name="bench", epoch=EPOCH, key=KEY, disks={VDA: SIZE}
        )
        self.table = DigestTable.create(folder / "vda.tbl", SIZE, KEY)
        self.spool = folder / "spool"
        self.spool.mkdir()
        self.rng = np.random.default_rng(4)
        self.last: Digest | None = None
        self.changed: dict[int, int] = {}

    def point(self, sequence: int, now: datetime, blocks: int) -> None:
        """Make and seal one point with so many changed blocks."""
        parts = list(
            produce(
                Churned(self.rng, blocks), VDA, self.table, Mode.CHANGED, self.spool, digest_key=KEY, time=now
            )
        )
        for part in parts:
            with self.journal.receive(part.digest, part.kind) as incoming:
                incoming.write(part.path.read_bytes())
                incoming.commit()
            part.path.unlink()
            part.pending.apply(self.table)
        self.changed[sequence] = sum(len(part.pending.digests) for part in parts) * BLOCK
        if self.last is None:
            self.journal.apply_initial(EPOCH, VDA, [part.digest for part in parts])
        self.last = self.journal.seal(EPOCH, self._manifest(sequence, now, parts).to_bytes())

    def _manifest(self, sequence: int, now: datetime, parts: list[Part]) -> Manifest:
        initial = self.last is None
        logs = () if initial else tuple(FileRef(part.digest, part.length) for part in parts)
        return Manifest(
            item=ITEM, name="bench", epoch=EPOCH, sequence=Sequence(sequence), time=now, consistency=Consistency.CRASH,
            kind=PointKind.INITIAL if initial else PointKind.DELTA, previous=self.last, vm=DEFINITION,
            disks={VDA: DiskPoint(SIZE, logs, changed=self.changed[sequence])},
        )  # fmt: skip

    def stored(self) -> int:
        """Bytes on disk of everything but the base."""
        folder = self.journal.path
        kept = [path for path in (folder, *folder.rglob("*")) if "base" not in path.relative_to(folder).parts]
        return sum(path.lstat().st_blocks * 512 for path in kept)


def run(blocks: int, frequency_s: int) -> tuple[int, int, int, float]:
    """Feed a day; return the stored bytes, the changed bytes of the points that are held, their number, and the seconds."""
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/var/tmp"))
    begun = time.perf_counter()
    try:
        feed = Feed(folder, frequency_s)
        for sequence in range(1, HOURS * 3600 // frequency_s + 1):
            now = START + timedelta(seconds=sequence * frequency_s)
            feed.point(sequence, now, blocks)
            if sequence * frequency_s % 3600 == 0:
                feed.journal.maintain(feed.policy, now)
        held = [point.sequence for point in feed.journal.points()]
        # The first point held is the base: its changes are in it.
        changed = sum(feed.changed[sequence] for sequence in held[1:])
        stored = feed.stored()
        feed.journal.close()
        feed.table.close()
        return stored, changed, len(held), time.perf_counter() - begun
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1000, help="changed blocks of a point")
    parser.add_argument("--frequency", type=int, default=300, help="seconds between points")
    options = parser.parse_args()
    stored, changed, points, seconds = run(options.blocks, options.frequency)
    print(
        f"{points} points in {seconds:.0f} s; {(stored - changed) / points:.0f} bytes a point beside the blocks"
    )
    say(
        Row(
            "stored bytes of 24 h of points",
            f"a point each {options.frequency} s with {options.blocks} scattered blocks of 4 KiB of random bytes"
            f" ({changed / MIB / points:.1f} MiB), default retention after {HOURS} h; blocks on disk of the journal's folder but the base,"
            " against the blocks that changed",
            f"{stored / MIB:.1f} MiB",
            f"{changed / MIB:.1f} MiB changed",
            stored / changed,
            "x",
            BOUND,
            least=False,
        )
    )


if __name__ == "__main__":
    main()
