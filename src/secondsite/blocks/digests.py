"""The keyed 64-bit digest of a block, and the test for zeros.

A digest is the first 8 bytes of BLAKE3 keyed with the item's own key, as a little-endian integer. It tells changed
from unchanged and is no protection against somebody who knows the key. Two values are taken out of its range:
0 means "all zero" and 1 means "unknown"; a digest that comes out as one of them becomes 2 or 3.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from secondsite.model.units import BLOCK, Buffer

ZERO_DIGEST: Final = 0
UNKNOWN: Final = 1
_RESERVED: Final = 2


def zero_blocks(data: Buffer) -> NDArray[np.bool_]:
    """Return, for each block of `data`, whether it is all zero; a short last block counts as one."""
    view = memoryview(data).cast("B")
    whole = len(view) // BLOCK
    zero = np.empty(-(-len(view) // BLOCK), np.bool_)
    if whole:
        # or-reduce of 64-bit words: 12 GiB/s on data, 57 on zeros (`any` 11 and 34)
        words = np.frombuffer(view, "<u8", whole * (BLOCK // 8)).reshape(whole, BLOCK // 8)
        np.equal(np.bitwise_or.reduce(words, axis=1), 0, out=zero[:whole])
    if whole < len(zero):
        zero[whole] = not np.frombuffer(view, np.uint8, offset=whole * BLOCK).any()
    return zero


def block_digests(data: Buffer, key: bytes) -> NDArray[np.uint64]:
    """Return one digest for each block of `data`: 0 only for zeros, never 1; a short last block is digested as it is.

    About 2 GiB/s on one core; zeros cost only the test for them.
    """
    view = memoryview(data).cast("B")
    zero = zero_blocks(view)
    result = np.zeros(len(zero), np.uint64)
    filled = np.flatnonzero(~zero)
    joined = b"".join(
        [blake3(view[at : at + BLOCK], key=key).digest(8) for at in (filled * BLOCK).tolist()],
    )
    digests = np.frombuffer(joined, "<u8")
    result[filled] = np.where(digests < _RESERVED, digests + np.uint64(_RESERVED), digests)
    return result
