"""Thinning: a point is given up by merging its changes into the next one, so that older points get sparser.

What it promises: every other point reads as before, and the chain stays verifiable, for the merged manifest names what it
replaces. The order of steps is argued in docs/design/journal.md. Damaged files are refused, never merged. What it does not do:
the newest point is never touched (its source compares its digest), nor the base's (that is a fold).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from blake3 import blake3

from secondsite import durable
from secondsite.errors import CorruptError, InvalidInputError, NotFoundError, PinnedError
from secondsite.hrl.merge import Layer, merge_layers
from secondsite.hrl.reader import Log, ReadAt, read_log
from secondsite.hrl.writer import LogWriter
from secondsite.hrl.zeros import decode_zeros, encode_zeros
from secondsite.journal.garbage import Expected
from secondsite.journal.logs import FileKind, files_of
from secondsite.journal.points import StoredPoint
from secondsite.journal.store import Store, naming
from secondsite.model.ids import Digest, DiskKey, Sequence
from secondsite.model.manifest import DiskPoint, FileRef, Manifest, PointKind
from secondsite.model.units import MIB

_HASH_CHUNK: Final = 4 * MIB


def thin_between(
    store: Store, judged: Collection[Sequence], kept: Seq[Sequence], expected: Expected
) -> tuple[int, CorruptError | None]:
    """Merge those of the `judged` points after the first of `kept` that are not among `kept` into their successors.

    Pinned points stay, and what was sealed since they were judged. A run of points with a damaged file stays as well, and the
    others are merged. Returns how many points went, and the damage.
    """
    offered = store.chain()[1].offered
    if not kept or not offered:
        return 0, None
    try:
        with store.pins.removing() as pins:
            stay = {*kept, *(pin.sequence for pin in pins)}
    except PinnedError:  # a reader of a folder that it cannot write
        return 0, None
    least = max(offered[0].sequence, kept[0])
    there = {point.sequence for point in offered if point.sequence > least}
    given_up = there.intersection(judged) - stay
    gone, damage = 0, None
    for group in groups(offered, given_up):
        try:
            merge_group(store, group, expected)
            gone += len(group) - 1
        except PinnedError:  # since we looked; there is always a next time
            continue
        except CorruptError as error:
            damage = damage or error
    return gone, damage


def groups(points: list[StoredPoint], sequences: Collection[Sequence]) -> list[list[StoredPoint]]:
    """Return for each run of points to give up the run and the point that takes it in.

    `points` are those offered, the base's first.

    Raises:
        NotFoundError: one is not retained.
        InvalidInputError: the base's point or the newest is among them, or would have to be replaced.
    """
    known = {point.sequence for point in points}
    wanted = set(sequences)
    if missing := sorted(wanted - known):
        raise NotFoundError(f"there is no point {missing[0]}", point=missing[0])
    result: list[list[StoredPoint]] = []
    run: list[StoredPoint] = []
    for position, point in enumerate(points):
        if point.sequence in wanted:
            if position == 0:
                raise InvalidInputError(
                    f"point {point.sequence} is the base", hint="it is given up by retention, not by thinning"
                )
            run.append(point)
        elif run:
            result.append([*run, point])
            run = []
    if run or (result and result[-1][-1] is points[-1]):
        raise InvalidInputError(
            f"point {points[-1].sequence} is the newest and cannot be merged",
            hint="leave the newest point, and the one before it",
        )
    return result


def merge_group(store: Store, group: list[StoredPoint], expected: Expected) -> None:
    """Give up all points of `group` but the last, which takes their changes in. `expected` is told of every new
    file before the manifest names it, so that garbage collection leaves it.

    Raises:
        PinnedError: one of them is in use. Nothing has changed but files that nobody names.
        CorruptError: a file of the group is damaged. Likewise.
    """
    target = group[-1]
    given_up = [point.sequence for point in group[:-1]]
    disks = {disk: _merge_disk(store, disk, group, expected) for disk in target.manifest.disks}
    replaces: list[Digest] = []
    for point in group:
        replaces += [*point.manifest.replaces, point.digest]
    merged: Manifest = replace(
        target.manifest,
        kind=PointKind.MERGED,
        previous=group[0].manifest.previous,
        replaces=tuple(dict.fromkeys(replaces)),
        disks=disks,
    )
    with store.pins.removing() as pins:
        for pin in pins:
            if pin.sequence in given_up:
                raise PinnedError(
                    f"point {pin.sequence} is in use by {pin.owner}",
                    hint="thin when that has ended",
                    point=pin.sequence,
                    owner=pin.owner,
                )
        store.points.write(merged.to_bytes(), target.sequence)
        store.points.remove(reversed(given_up))
    expected.named(merged)


def _merge_disk(store: Store, disk: DiskKey, group: list[StoredPoint], expected: Expected) -> DiskPoint:
    target = group[-1].manifest
    size = target.disks[disk].size  # it may have grown since
    output = _Output(store, target, size, expected)
    try:
        zeros = merge_layers([_layer(store, point, disk) for point in group], output.new_log)
        changed = output.data_length
        zero_file = None
        if len(zeros):
            changed += int(zeros[:, 1].sum())
            zero_file = output.keep_zeros(encode_zeros(zeros))
        return DiskPoint(size, tuple(output.keep_logs()), zero_file, changed)
    finally:
        output.discard()


def _layer(store: Store, point: StoredPoint, disk: DiskKey) -> Layer:
    logs: list[tuple[Log, ReadAt]] = []
    zeros = None
    for file in files_of(point.manifest.disks[disk]):
        try:
            data = store.logs.proven(file)
        except CorruptError as error:
            raise naming(error, point=point.sequence, disk=disk) from error
        if file.kind == "zeros":
            zeros = decode_zeros(data)
        else:
            read_at = _reader(data)
            logs.append((read_log(read_at, len(data)), read_at))
    return Layer(logs, zeros)


def _reader(data: memoryview) -> ReadAt:
    return lambda offset, length: bytes(data[offset : offset + length])


class _Output:
    """New files, made in `incoming` and given their names when they are complete."""

    def __init__(self, store: Store, target: Manifest, disk_size: int, expected: Expected) -> None:
        self.data_length = 0
        self._store = store
        self._target = target
        self._disk_size = disk_size
        self._expected = expected
        self._logs: list[Path] = []

    @contextmanager
    def new_log(self) -> Iterator[LogWriter]:
        path = durable.temporary_path(self._store.incoming / "merged.hrl")
        self._logs.append(path)
        with durable.naming_full_disk(path), path.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            writer = LogWriter(
                file,
                disk_size=self._disk_size,
                unique_id=uuid.uuid4(),
                previous_id=None,
                time=self._target.time,
            )
            yield writer
            self.data_length += writer.data_length

    def keep_logs(self) -> Iterator[FileRef]:
        for path in self._logs:
            yield self._keep(path, "hrl")

    def keep_zeros(self, data: bytes) -> FileRef:
        path = durable.temporary_path(self._store.incoming / "merged.zeros")
        self._logs.append(path)
        with durable.naming_full_disk(path):
            path.touch(mode=0o600)
            path.write_bytes(data)
        ref = self._keep(path, "zeros")
        self._logs.remove(path)
        return ref

    def discard(self) -> None:
        for path in self._logs:
            with suppress(FileNotFoundError):
                path.unlink()

    def _keep(self, path: Path, kind: FileKind) -> FileRef:
        hasher = blake3()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_HASH_CHUNK):
                hasher.update(chunk)
        digest = Digest(hasher.hexdigest())
        self._expected.add(digest, kind)
        return self._store.logs.adopt(path, digest, kind, made_for=self._disk_size).ref
