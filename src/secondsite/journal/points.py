"""The manifests on disk: write, list, load, and the chain that they form.

What it promises: a point that it returns has the bytes that were sealed. A damaged one ends the chain: it and
what comes after are not offered, since later points need its list of files. What it does not do: it does not look at the
files that manifests name.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from blake3 import blake3

from secondsite import durable
from secondsite.errors import CorruptError, NotFoundError, UnsupportedError
from secondsite.journal.documents import BaseState
from secondsite.model.ids import Digest, Epoch, Sequence
from secondsite.model.manifest import (
    GROUP_LABEL,
    GROUP_MEMBERS_LABEL,
    MANIFEST_BYTES_MAX,
    Consistency,
    Manifest,
    PointKind,
    VmDefinition,
)

_NAME: Final = re.compile(r"(\d{16})\.point")
_TRAILER: Final = 66  # "\n", 64 hex digits, "\n"


@dataclass(frozen=True, slots=True)
class PointInfo:
    """What lists of points show. `changed`: bytes that differ from the point before; `stored`: bytes of its files."""

    sequence: Sequence
    epoch: Epoch
    time: datetime
    consistency: Consistency
    kind: PointKind
    digest: Digest
    changed: int
    stored: int
    group: str | None = None
    """The cut that it shares with other machines' points, "<group>:<number>"."""
    group_members: int = 0
    """How many machines were cut together."""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A manifest as it lies on disk."""

    manifest: Manifest
    digest: Digest

    @property
    def sequence(self) -> Sequence:
        return self.manifest.sequence

    def info(self) -> PointInfo:
        """Return the line for lists."""
        manifest = self.manifest
        disks = manifest.disks.values()
        return PointInfo(
            sequence=manifest.sequence,
            epoch=manifest.epoch,
            time=manifest.time,
            consistency=manifest.consistency,
            kind=manifest.kind,
            digest=self.digest,
            changed=sum(disk.changed for disk in disks),
            stored=sum(
                sum(log.length for log in disk.logs) + (disk.zeros.length if disk.zeros else 0)
                for disk in disks
            ),
            group=manifest.labels.get(GROUP_LABEL),
            group_members=_number(manifest.labels.get(GROUP_MEMBERS_LABEL, "")),
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """The points from the base's on, ascending.

    points: sound and linked, the base's first. While a fold is under way those before its goal are here too (their
    files are needed) but must not be offered: see `offered`.
    damage: why the chain ends early, or None.
    leftovers: manifests that an interrupted fold or thinning still has to unlink.
    """

    points: tuple[StoredPoint, ...]
    floor: Sequence
    damage: CorruptError | None
    leftovers: tuple[Sequence, ...]

    @property
    def offered(self) -> list[StoredPoint]:
        """The points that may be read."""
        return [point for point in self.points if point.sequence >= self.floor]

    @property
    def last(self) -> StoredPoint | None:
        """The newest point that may be read."""
        return self.points[-1] if self.points and self.points[-1].sequence >= self.floor else None


class PointStore:
    """The folder `points`. Thread-safe; manifests are parsed once and kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._cache: dict[Sequence, tuple[tuple[int, int, int], StoredPoint]] = {}
        self._chain: tuple[BaseState, dict[Sequence, tuple[int, int, int]], Chain] | None = None
        self._definitions: dict[VmDefinition, VmDefinition] = {}

    def path(self, sequence: Sequence) -> Path:
        """Return where the point lies."""
        return self.folder / f"{sequence:016d}.point"

    def write(self, data: bytes, sequence: Sequence) -> None:
        """Put a manifest in place, durably; it replaces one of the same sequence."""
        digest = blake3(data).hexdigest()
        durable.write_atomic(self.path(sequence), data + f"\n{digest}\n".encode())

    def persist(self, sequence: Sequence) -> None:
        """Sync a point that is there already, for an acknowledgement that may have been cut before its sync."""
        durable.fsync_file(self.path(sequence))
        durable.fsync_dir(self.folder)

    def remove(self, sequences: Iterable[Sequence]) -> int:
        """Unlink points, in the order given; return how many."""
        count = 0
        for sequence in sequences:
            self.path(sequence).unlink(missing_ok=True)
            with self._lock:
                self._cache.pop(sequence, None)
            count += 1
        if count:
            durable.fsync_dir(self.folder)
        return count

    def sequences(self) -> list[Sequence]:
        """Return the sequences of all files, sound or not, ascending."""
        return sorted(self._signatures())

    def load(self, sequence: Sequence) -> StoredPoint:
        """Read one point.

        Raises:
            NotFoundError: there is no such file.
            CorruptError: its bytes are not those that were sealed. Has the attribute `point`.
        """
        try:
            status = self.path(sequence).stat()
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no point {sequence}", point=sequence) from error
        return self._load(sequence, _signature(status))

    def chain(self, state: BaseState) -> Chain:
        """Return the chain that starts at the base's point."""
        if state.sequence is None:
            return Chain((), Sequence(0), None, ())
        found = self._signatures()
        with self._lock:
            if self._chain is not None and self._chain[:2] == (state, found):
                return self._chain[2]
        chain = self._link(state, found)
        with self._lock:
            self._chain = (state, found, chain)
        return chain

    def _link(self, state: BaseState, found: dict[Sequence, tuple[int, int, int]]) -> Chain:
        points: list[StoredPoint] = []
        leftovers: list[Sequence] = []
        damage: CorruptError | None = None
        assert state.sequence is not None
        for sequence, signature in sorted(found.items()):
            if sequence < state.sequence:
                leftovers.append(sequence)
                continue
            try:
                points.append(self._load(sequence, signature))
            except NotFoundError:  # unlinked since we listed: thinned away
                continue
            except CorruptError as error:
                damage = error
                break
        replaced = {digest: point.sequence for point in points for digest in point.manifest.replaces}
        leftovers += [point.sequence for point in points if replaced.get(point.digest, 0) > point.sequence]
        gone = set(leftovers)
        points = [point for point in points if point.sequence not in gone]
        sound = _linked(points, state)
        if sound < len(points) or not points:
            damage = _unlinked(points[sound].sequence if sound < len(points) else state.sequence, damage)
        return Chain(tuple(points[:sound]), state.floor, damage, tuple(leftovers))

    def _signatures(self) -> dict[Sequence, tuple[int, int, int]]:
        found: dict[Sequence, tuple[int, int, int]] = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if match := _NAME.fullmatch(entry.name):
                    try:
                        found[Sequence(int(match[1]))] = _signature(entry.stat())
                    except FileNotFoundError:
                        continue
        return found

    def _load(self, sequence: Sequence, signature: tuple[int, int, int]) -> StoredPoint:
        with self._lock:
            cached = self._cache.get(sequence)
        if cached is not None and cached[0] == signature:
            return cached[1]
        point = self.read_uncached(sequence)
        with self._lock:
            # thousands of points carry the same definition; keep one
            vm = self._definitions.setdefault(point.manifest.vm, point.manifest.vm)
            point = StoredPoint(replace(point.manifest, vm=vm), point.digest)
            self._cache[sequence] = (signature, point)
        return point

    def read_uncached(self, sequence: Sequence) -> StoredPoint:
        """Read one point from its file, whatever is cached. Raises like `load`."""
        path = self.path(sequence)
        try:
            with path.open("rb", buffering=0) as file:
                # By its size: asking for the most that it may be sets 64 MiB aside, thousands of times.
                size = min(os.fstat(file.fileno()).st_size, MANIFEST_BYTES_MAX + _TRAILER)
                data = file.read(size + 1)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no point {sequence}", point=sequence) from error
        body, trailer = data[:-_TRAILER], data[-_TRAILER:]
        digest = Digest(blake3(body).hexdigest())
        if trailer != f"\n{digest}\n".encode():
            raise _damaged(sequence, path, "its digest does not match")
        try:
            manifest = Manifest.from_bytes(body)
        except (CorruptError, UnsupportedError) as error:
            raise _damaged(sequence, path, error.message) from error
        if manifest.sequence != sequence:
            raise _damaged(sequence, path, f"it is point {manifest.sequence}")
        return StoredPoint(manifest, digest)


def _linked(points: list[StoredPoint], state: BaseState) -> int:
    """Return how many of `points` keep the chain rule."""
    if not points or points[0].sequence != state.sequence or points[0].digest != state.manifest:
        return 0
    for count in range(1, len(points)):
        if not follows(points[count].manifest, points[count - 1]):
            return count
    return len(points)


def follows(manifest: Manifest, before: StoredPoint) -> bool:
    """Say whether `manifest` may stand after `before` (the chain rule of docs/design/journal.md)."""
    linked = manifest.previous == before.digest or manifest.previous in before.manifest.replaces
    return linked and manifest.epoch >= before.manifest.epoch


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unlinked(sequence: Sequence, damage: CorruptError | None) -> CorruptError:
    if damage is not None and int(damage.attributes.get("point", sequence)) <= sequence:
        return damage
    return CorruptError(
        f"point {sequence} does not follow the one before it: a point is missing or was exchanged",
        point=sequence,
    )


def _damaged(sequence: Sequence, path: Path, reason: str) -> CorruptError:
    return CorruptError(f"point {sequence} is damaged: {reason}", point=sequence, path=str(path))
