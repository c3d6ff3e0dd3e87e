"""What a shipped but not yet acknowledged part or point will make of the digest tables.

Before a part of an initial replication is applied, or a point is sealed, the record is saved. After the
acknowledgement it is applied to the tables and discarded. Whoever finds one after a crash asks the target: it is applied
if the target holds what it promises, discarded if it does not, and its blocks become unknown if nobody can tell.

```
0      8   magic "SSPENDNG"
8      4   version, 1                 (all integers little-endian)
12     4   length h of the header
16     h   JSON: sequence (0: parts of an initial replication), digest of the manifest or "", checkpoint,
           and per part {disk, runs, digests, zeros}: how many of each follow
16+h       per part: runs (first, end as two 8-byte integers), one 8-byte digest for each block of the runs, zero runs
end-32 32  BLAKE3 of all bytes before
```
Promises: a saved record is durable and whole; `apply`, `mark_unknown` and `discard` may be repeated, also after a
crash in the midst of them. A record that cannot be read raises TrackingLostError, because nobody knows then which
cells are true: the caller marks the tables unknown, or fetches the digests from the target, and compares.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from secondsite import durable
from secondsite.blocks import DigestTable
from secondsite.capture.runs import Runs, expand, length, no_runs
from secondsite.errors import TrackingLostError
from secondsite.model.ids import Digest, DiskKey, Sequence, parse_disk_key

_MAGIC: Final = b"SSPENDNG"
_VERSION: Final = 1
_FIXED: Final = struct.Struct("<8sII")
_CHECKSUM: Final = 32
_APPLY_BLOCKS: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class PendingBlocks:
    """The cells that a part changes: `digests`, one for each block of `runs`, and zero for each block of `zeros`.

    Runs cost 16 bytes each and digests 8 bytes a block, so that a resync of 100 GiB is remembered in 200 MiB.
    """

    runs: Runs
    digests: NDArray[np.uint64]
    zeros: Runs

    @classmethod
    def of_data(cls, runs: Runs, digests: NDArray[np.uint64]) -> PendingBlocks:
        """Return what a log changes."""
        return cls(runs, digests, no_runs())

    @classmethod
    def of_zeros(cls, zeros: Runs) -> PendingBlocks:
        """Return what a list of zero extents changes."""
        return cls(no_runs(), np.empty(0, np.uint64), zeros)

    @property
    def indices(self) -> NDArray[np.int64]:
        """The block numbers that `digests` belong to, in the same order."""
        return expand(self.runs)

    @property
    def blocks(self) -> int:
        """How many cells it changes."""
        return len(self.digests) + length(self.zeros)

    def apply(self, table: DigestTable) -> None:
        """Set the cells; does not sync."""
        indices = self.indices
        for at in range(0, len(indices), _APPLY_BLOCKS):
            table.put(indices[at : at + _APPLY_BLOCKS], self.digests[at : at + _APPLY_BLOCKS])
        for first, end in self.zeros.tolist():
            table.fill_zero(first, end - first)

    def mark_unknown(self, table: DigestTable) -> None:
        """Make the cells unknown; does not sync."""
        for first, end in [*self.runs.tolist(), *self.zeros.tolist()]:
            table.mark_unknown(first, end - first)


class Promising(Protocol):
    """What the record takes of a part."""

    @property
    def disk(self) -> DiskKey: ...
    @property
    def pending(self) -> PendingBlocks: ...


@dataclass(frozen=True, slots=True, eq=False)
class PendingRecord:
    """See the module's docstring. `sequence` 0 and an empty `digest`: parts of an initial replication."""

    sequence: Sequence
    digest: Digest
    checkpoint: str
    blocks: tuple[tuple[DiskKey, PendingBlocks], ...]

    @classmethod
    def of(
        cls, sequence: Sequence, digest: Digest, checkpoint: str, parts: Iterable[Promising]
    ) -> PendingRecord:
        """Return the record of what `parts` change."""
        return cls(sequence, digest, checkpoint, tuple((part.disk, part.pending) for part in parts))

    # -- on the tables ---------------------------------------------------------------------------------

    def apply(self, tables: Mapping[DiskKey, DigestTable]) -> None:
        """The target acknowledged: advance the tables, durably."""
        for disk, blocks in self.blocks:
            blocks.apply(tables[disk])
        self._sync(tables)

    def mark_unknown(self, tables: Mapping[DiskKey, DigestTable]) -> None:
        """Nobody knows whether the target took it: never trust these blocks, durably."""
        for disk, blocks in self.blocks:
            blocks.mark_unknown(tables[disk])
        self._sync(tables)

    def _sync(self, tables: Mapping[DiskKey, DigestTable]) -> None:
        for disk in {disk for disk, _ in self.blocks}:
            tables[disk].sync()

    # -- as a file -------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the record durably; it replaces an earlier one.

        Raises:
            NoSpaceError: an earlier record is untouched.
        """
        header = json.dumps(
            {
                "sequence": self.sequence,
                "digest": self.digest,
                "checkpoint": self.checkpoint,
                "parts": [
                    {
                        "disk": disk,
                        "runs": len(blocks.runs),
                        "digests": len(blocks.digests),
                        "zeros": len(blocks.zeros),
                    }
                    for disk, blocks in self.blocks
                ],
            }
        ).encode()
        temporary = durable.temporary_path(path)
        with durable.naming_full_disk(path):
            try:
                with temporary.open("xb") as file:
                    checksum = blake3()
                    for piece in self._pieces(header):
                        checksum.update(piece)
                        file.write(piece)
                    file.write(checksum.digest())
                    file.flush()
                    durable.fsync_file(file.fileno())
                durable.rename_durable(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def _pieces(self, header: bytes) -> Iterable[bytes]:
        yield _FIXED.pack(_MAGIC, _VERSION, len(header)) + header
        for _, blocks in self.blocks:
            yield blocks.runs.astype("<i8").tobytes()
            yield blocks.digests.astype("<u8").tobytes()
            yield blocks.zeros.astype("<i8").tobytes()

    @classmethod
    def load(cls, path: Path) -> PendingRecord | None:
        """Return the saved record, or None if there is none.

        Raises:
            TrackingLostError: it is torn or damaged; see the module's docstring.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return cls._parse(data)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise TrackingLostError(
                "the record of what was pending is damaged",
                hint="the next cycle compares against the target",
                path=str(path),
                reason=str(error),
            ) from error

    @classmethod
    def _parse(cls, data: bytes) -> PendingRecord:
        body, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
        if blake3(body).digest() != checksum:
            raise ValueError("its checksum is wrong")
        magic, version, header_length = _FIXED.unpack_from(body)
        if magic != _MAGIC or version != _VERSION:
            raise ValueError("it is of a format that this version does not know")
        at = _FIXED.size + header_length
        header: dict[str, Any] = json.loads(body[_FIXED.size : at])
        blocks = []
        for part in header["parts"]:
            runs = np.frombuffer(body, "<i8", part["runs"] * 2, at).reshape(-1, 2)
            at += runs.nbytes
            digests = np.frombuffer(body, "<u8", part["digests"], at)
            at += digests.nbytes
            zeros = np.frombuffer(body, "<i8", part["zeros"] * 2, at).reshape(-1, 2)
            at += zeros.nbytes
            blocks.append((parse_disk_key(part["disk"]), PendingBlocks(runs, digests, zeros)))
        if at != len(body):
            raise ValueError("its length is wrong")
        return cls(
            Sequence(int(header["sequence"])),
            Digest(str(header["digest"])),
            str(header["checkpoint"]),
            tuple(blocks),
        )

    @staticmethod
    def discard(path: Path) -> None:
        """Remove the record durably; one that is gone is no error."""
        with suppress(FileNotFoundError):
            path.unlink()
        durable.fsync_dir(path.parent)


def mark_all_unknown(tables: Mapping[DiskKey, DigestTable]) -> None:
    """Trust no cell of any table, durably: what remains when the record itself is lost."""
    for table in tables.values():
        table.mark_unknown(0, len(table))
        table.sync()
