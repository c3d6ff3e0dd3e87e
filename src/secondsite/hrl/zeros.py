"""Lists of zero extents: the ranges of a disk that became zero or were discarded, as a file beside the logs.

```
0    8   magic "SSZEROS" and a newline
8    4   version, 1            (all integers little-endian)
12   4   zero
16   8   number of extents, n
24  16n  offset u64, length u64, in bytes
```
Extents ascend, are whole sectors and never touch, so that a set of zeros has exactly one encoding. The file has
no checksum: it is named by its digest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secondsite.errors import CorruptError, InvalidInputError, UnsupportedError
from secondsite.model.units import SECTOR, Buffer

_MAGIC: Final = b"SSZEROS\n"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQ")
_LIMIT: Final = 1 << 62


def encode_zeros(extents: Iterable[tuple[int, int]] | NDArray[np.int64]) -> bytes:
    """Return the file for (offset, length) in any order; overlapping and touching extents are joined."""
    pairs = _as_pairs(extents)
    if (pairs < 0).any() or (pairs >= _LIMIT).any() or (pairs % SECTOR).any():
        raise InvalidInputError("a zero extent is not a range of sectors")
    joined = _join(pairs[pairs[:, 1] > 0])
    return _HEADER.pack(_MAGIC, _VERSION, 0, len(joined)) + joined.astype("<u8").tobytes()


def decode_zeros(data: Buffer) -> NDArray[np.int64]:
    """Return the extents as an array (n, 2) of offset and length.

    Raises:
        CorruptError: not exactly what `encode_zeros` writes.
        UnsupportedError: a version that this one does not know.
    """
    view = memoryview(data).cast("B")
    if len(view) < _HEADER.size:
        raise CorruptError("the list of zero extents is shorter than its header")
    magic, version, reserved, count = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise CorruptError("this is not a list of zero extents")
    if version != _VERSION:
        raise UnsupportedError(
            f"zero list version {version} is not known", hint=f"version {_VERSION} is read"
        )
    if reserved or len(view) != _HEADER.size + 16 * count:
        raise CorruptError(f"a list of {count} zero extents has {len(view)} bytes")
    raw = np.frombuffer(view, "<u8", offset=_HEADER.size).reshape(-1, 2)
    if (raw >= _LIMIT).any() or (raw % np.uint64(SECTOR)).any() or (raw[:, 1] == 0).any():
        raise CorruptError("a zero extent is not a range of sectors")
    pairs = raw.astype(np.int64)
    if (pairs[1:, 0] <= pairs[:-1].sum(axis=1)).any():
        raise CorruptError("the zero extents do not ascend")
    return pairs


def _as_pairs(extents: Iterable[tuple[int, int]] | NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(extents, np.ndarray):
        return extents.astype(np.int64).reshape(-1, 2)
    try:
        return np.array(list(extents), np.int64).reshape(-1, 2)
    except OverflowError as error:
        raise InvalidInputError("a zero extent is out of range") from error


def _join(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(pairs) == 0:
        return pairs
    ordered = pairs[np.argsort(pairs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(ordered.sum(axis=1))
    first = np.concatenate(([0], np.flatnonzero(ordered[1:, 0] > reach[:-1]) + 1))
    start = ordered[first, 0]
    end = reach[np.concatenate((first[1:] - 1, [len(ordered) - 1]))]
    return np.column_stack((start, end - start))
