"""Merges the layers of several points into new logs of bounded size: thinning's and folding's work on data.

What it promises: the new logs and zeros, applied to anything, give what the layers give when they are applied oldest
first; no byte that a later layer hides is copied; logs hold extents in ascending order, neighbours joined. What it does not
do: names, digests, syncs and manifests are the caller's, through the factory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secondsite.errors import CorruptError, InvalidInputError
from secondsite.hrl.index import ZERO, ExtentIndex
from secondsite.hrl.reader import Log, ReadAt
from secondsite.hrl.writer import LogWriter
from secondsite.model.units import MIB, PART_DATA_MAX, SECTOR, Buffer

NewLog: TypeAlias = Callable[[], AbstractContextManager[LogWriter]]
"""Opens the next log to be written. The writer is closed when the context is left without an exception."""

ENTRY_TARGET: Final = MIB
"""Neighbouring extents are joined into entries of this size: small enough to read at once, few enough to index."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one point changed on one disk. Within a layer the logs' data count over its zeros."""

    logs: Sequence[tuple[Log, ReadAt]]
    zeros: NDArray[np.int64] | None = None


def index_layers(layers: Sequence[Layer]) -> tuple[ExtentIndex, list[ReadAt]]:
    """Return the index of all layers, oldest first, and the reader of each source that it names."""
    readers: list[ReadAt] = []
    indexes: list[ExtentIndex] = []
    for layer in layers:
        if layer.zeros is not None:
            indexes.append(ExtentIndex.from_zeros(layer.zeros))
        for log, read_at in layer.logs:
            indexes.append(ExtentIndex.from_log(log, len(readers)))
            readers.append(read_at)
    return ExtentIndex.merge(indexes), readers


def merge_layers(
    layers: Sequence[Layer], new_log: NewLog, *, data_max: int = PART_DATA_MAX
) -> NDArray[np.int64]:
    """Write what survives of `layers` (oldest first) as new logs; return the zero extents that survive.

    Each log holds at most `data_max` bytes of data; none is opened if no data survive. If this raises, the log that was
    open was not closed and must be dropped.

    Raises:
        CorruptError: a log ends before its data do.
    """
    if data_max < SECTOR or data_max % SECTOR:
        raise InvalidInputError(f"the size of a log must be a multiple of {SECTOR}", data_max=data_max)
    index, readers = index_layers(layers)
    data = index.source != ZERO
    with _Output(new_log, data_max) as output:
        for start, end, source, location in zip(
            index.start[data].tolist(),
            index.end[data].tolist(),
            index.source[data].tolist(),
            index.location[data].tolist(),
            strict=True,
        ):
            at = start
            while at < end:
                size = min(end - at, output.room(at))
                piece = readers[source](location + at - start, size)
                if len(piece) != size:
                    raise CorruptError("a log ends within its data", location=location + at - start)
                output.add(at, piece)
                at += size
    return index.extents_of(ZERO)


class _Output:
    """Joins neighbouring pieces to entries and entries to logs."""

    def __init__(self, new_log: NewLog, data_max: int) -> None:
        self._new_log = new_log
        self._data_max = data_max
        self._stack = ExitStack()
        self._writer: LogWriter | None = None
        self._pieces: list[Buffer] = []
        self._start = 0
        self._size = 0

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            with self._stack:  # the log that is open learns of it if its last write fails
                self._flush()
                self._end_log()
            return False
        return bool(self._stack.__exit__(kind, error, trace))  # type: ignore[arg-type]

    def room(self, offset: int) -> int:
        """Return how many bytes from `offset` on the entry, and the log, will take; more than 0."""
        if self._size and offset != self._start + self._size:
            self._flush()
        while True:
            written = self._writer.data_length if self._writer is not None else 0
            left = min(ENTRY_TARGET, self._data_max - written) - self._size
            if left > 0:
                return left
            if self._size:
                self._flush()
            else:
                self._end_log()

    def add(self, offset: int, piece: Buffer) -> None:
        if not self._pieces:
            self._start = offset
        self._pieces.append(piece)
        self._size += len(piece)

    def _flush(self) -> None:
        if not self._pieces:
            return
        if self._writer is None:
            self._writer = self._stack.enter_context(self._new_log())
        self._writer.write(self._start, self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0

    def _end_log(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._stack.close()
