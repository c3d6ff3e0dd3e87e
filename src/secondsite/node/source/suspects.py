"""Blocks in which the target may differ although the machine did not write there: what a cycle looks at beside its bitmap.

When the target's last point turns out to be another one than was believed (the other side's own disks after a reversal,
a journal that was restored), its digests are fetched. Where they differ from those of the point that our bitmap counts
from, the disks may differ whether the machine wrote there or not; everywhere else only what the machine wrote can.
So a compare of two tables stands in for reading whole disks.

The file outlives a crash: it is durable before any table is changed, and is united with what the next try finds.
A set that is larger than needed costs reads, nothing else. One that does not parse means: compare everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import blake3
import numpy as np

from secondsite import durable
from secondsite.capture.port import Extent, SnapshotDisk
from secondsite.capture.runs import Runs, merge, no_runs
from secondsite.errors import CorruptError
from secondsite.model.ids import DiskKey
from secondsite.model.units import BLOCK

RUNS_MAX: Final = 1 << 18
"""More scattered than that, a compare of whole disks costs little more."""


class Suspects:
    """Runs of blocks per disk, in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[DiskKey, Runs]:
        """Return what is written down, nothing if there is no file.

        Raises:
            CorruptError: the file is damaged.
        """
        try:
            disks = _checked(json.loads(self._path.read_text()))
            return {DiskKey(disk): np.asarray(runs, np.int64).reshape(-1, 2) for disk, runs in disks.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{self._path.name} does not parse: {error}") from error

    def add(self, found: Mapping[DiskKey, Runs]) -> bool:
        """Unite what is written down with `found`, durably; false if that is too scattered, and nothing was written.

        Raises:
            CorruptError: what is written down is damaged.
        """
        before = self.load()
        united = {
            disk: merge(np.concatenate((before.get(disk, no_runs()), found.get(disk, no_runs()))))
            for disk in sorted({*before, *found})
        }
        if sum(len(runs) for runs in united.values()) > RUNS_MAX:
            return False
        disks = {str(disk): runs.tolist() for disk, runs in united.items()}
        durable.write_atomic(self._path, json.dumps({"disks": disks, "checksum": _checksum(disks)}).encode())
        return True

    def clear(self) -> None:
        """A point was acknowledged: the target holds what the machine held."""
        self._path.unlink(missing_ok=True)


class WithSuspects:
    """A snapshot's disk whose changes include the blocks `suspects`."""

    def __init__(self, disk: SnapshotDisk, suspects: Runs) -> None:
        self._disk = disk
        self._suspects = suspects
        self.size = disk.size
        self.whole = disk.whole
        self.read = disk.read
        self.device = disk.device

    def changed(self) -> Iterator[Extent]:
        """Yield the disk's own changes, then the suspects; whoever reads blocks unites them."""
        yield from self._disk.changed()
        for first, end in self._suspects.tolist():
            offset = first * BLOCK
            yield Extent(offset, min(end * BLOCK, self.size) - offset, zero=False)


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    disks: dict[str, Any] = document["disks"]
    if document["checksum"] != _checksum(disks):
        raise ValueError("its checksum is wrong")
    return disks


def _checksum(disks: Mapping[str, object]) -> str:
    return blake3.blake3(json.dumps(disks, sort_keys=True).encode()).hexdigest()
