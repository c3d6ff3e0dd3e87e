"""A view that is half open: what a point's index over all of its logs is, in a file, for the process that serves it.

A node has the points and the indexes of the logs in memory, since it received them; the process that is to serve a view would
read thousands of files to learn the same (1 to 2 s for 2,880 points, of which a failover is to start in 3). So the node
writes it down, and who opens the view takes it, if it still holds.

What it promises: `take` either gives what opening the view in the ordinary way would give, pinned, or None. It holds as long as
the point is the same, the base has not passed it, and all files that it names are there, which is looked at under the lock
under which they are pinned. Logs never change and are named by their digests. A base that has moved on since towards the point
is no obstacle: what the moving wrote is shadowed by the index (docs/design/journal.md, "A running view is not disturbed").
What it does not do: it is never needed; a file that is missing, torn or foreign is passed over. It is not synced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from secondsite import durable
from secondsite.errors import CorruptError, NotFoundError
from secondsite.hrl.lookup import ExtentLookup
from secondsite.journal.logs import StoredFile
from secondsite.journal.pins import HeldPin, Reading
from secondsite.journal.points import Chain, StoredPoint
from secondsite.journal.store import Store, points_after
from secondsite.model.ids import Digest, DiskKey, Sequence
from secondsite.model.manifest import FileRef

FORMAT: Final = b"secondsite-prepared/1\n"
_COLUMNS: Final = 4
_NUMBER: Final = "q"  # int64, of this machine
_DIGEST_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class PreparedDisk:
    """One disk's index, and its sources by their numbers."""

    index: ExtentLookup
    files: tuple[StoredFile, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` wrote of one point, over the base at the point `base`."""

    item: str
    sequence: Sequence
    digest: str
    base: Sequence
    disks: Mapping[DiskKey, PreparedDisk]

    @classmethod
    def load(cls, path: Path) -> Prepared | None:
        """Read the file; None if it is missing or not whole."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body, digest = data[:-_DIGEST_LENGTH], data[-_DIGEST_LENGTH:]
        if not body.startswith(FORMAT) or blake3(body).digest() != digest:
            return None
        header_end = body.index(b"\n", len(FORMAT)) + 1
        header: dict[str, Any] = json.loads(body[len(FORMAT) : header_end])
        disks: dict[DiskKey, PreparedDisk] = {}
        at = header_end
        for key, disk in header["disks"].items():
            length = 8 * int(disk["extents"])
            # Slices of bytes are copies: in the file they may lie unaligned, and lookups go through views of memory.
            columns = [
                memoryview(body[at + length * place : at + length * (place + 1)]).cast(_NUMBER)
                for place in range(_COLUMNS)
            ]
            at += length * _COLUMNS
            # That they are digests is looked at when their lengths are asked for (`take`).
            files = tuple(
                StoredFile(FileRef(Digest(digest), int(length)), kind)
                for digest, kind, length in disk["files"]
            )
            disks[DiskKey(key)] = PreparedDisk(ExtentLookup(*columns), files)
        return cls(
            str(header["item"]),
            Sequence(int(header["sequence"])),
            str(header["digest"]),
            Sequence(int(header["base"])),
            disks,
        )

    def take(self, store: Store, reading: Reading, sequence: Sequence | None, purpose: str) -> Taken | None:
        """Pin the point's files and return it, or None if this does not hold (any more). The caller holds the pins' lock."""
        state = store.base_state()
        if sequence != self.sequence or self.item != store.identity.item:
            return None
        # A fold that is under way has a goal: neither it nor the base may have passed the point.
        if state.sequence is None or not self.base <= state.sequence <= state.floor <= self.sequence:
            return None
        try:
            point = store.points.load(self.sequence)
        except (NotFoundError, CorruptError):
            return None
        if point.digest != self.digest or set(point.manifest.disks) != set(self.disks):
            return None
        files = {file for disk in self.disks.values() for file in disk.files}
        if any(store.logs.length(file.ref.digest, file.kind) != file.ref.length for file in files):
            return None
        names = {file.name for file in files}
        return Taken(point, reading.pin(self.sequence, purpose, names, still_base=False))


@dataclass(frozen=True, slots=True)
class Taken:
    """A prepared point whose files are pinned."""

    point: StoredPoint
    pin: HeldPin


def prepare(store: Store, base: Sequence, chain: Chain, point: StoredPoint, path: Path) -> None:
    """Write down the indexes of a point of the chain over that base; the caller holds the pins' lock. Replaces what stands at `path`.

    Raises:
        CorruptError: a file that the point needs is missing or malformed.
    """
    disks: dict[str, dict[str, Any]] = {}
    columns: list[bytes] = []
    for key in point.manifest.disks:
        index, sources = store.merged_index(points_after(chain, base, point.sequence), key)
        disks[key] = {
            "extents": len(index),
            "files": [[file.ref.digest, file.kind, file.ref.length] for file, _ in sources],
        }
        columns += [column.tobytes() for column in index.columns]
    header = {
        "item": store.identity.item,
        "sequence": point.sequence,
        "digest": point.digest,
        "base": base,
        "disks": disks,
    }
    body = b"".join((FORMAT, json.dumps(header, separators=(",", ":")).encode(), b"\n", *columns))
    temporary = durable.temporary_path(path)
    try:
        temporary.write_bytes(body + blake3(body).digest())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
