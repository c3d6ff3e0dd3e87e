"""Sets of blocks as sorted, disjoint runs: int64 arrays of shape (n, 2) with [first, end) in each row. Pure."""

from __future__ import annotations

from array import array
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Runs: TypeAlias = NDArray[np.int64]


def no_runs() -> Runs:
    """Return the empty set."""
    return np.empty((0, 2), np.int64)


class RunList:
    """Collects [first, end) pairs in any order, 16 bytes each; `merged` makes a set of them."""

    def __init__(self) -> None:
        self._pairs = array("q")

    def add(self, first: int, end: int) -> None:
        """Add one run; an empty one is dropped."""
        if end > first:
            self._pairs.extend((first, end))

    def extend(self, runs: Runs) -> None:
        """Add many."""
        self._pairs.frombytes(np.ascontiguousarray(runs, np.int64).tobytes())

    def merged(self) -> Runs:
        """Return the union of what was added."""
        return merge(np.frombuffer(self._pairs.tobytes(), np.int64).reshape(-1, 2))


def merge(runs: Runs) -> Runs:
    """Return the union of runs in any order that may overlap or touch."""
    if len(runs) == 0:
        return no_runs()
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(runs[:, 1])
    heads = np.flatnonzero(np.concatenate(([True], runs[1:, 0] > reach[:-1])))
    tails = np.concatenate((heads[1:], [len(runs)])) - 1
    return np.column_stack((runs[heads, 0], reach[tails]))


def intersect(left: Runs, right: Runs) -> Runs:
    """Return the blocks that are in both sets."""
    if len(left) == 0 or len(right) == 0:
        return no_runs()
    low = np.searchsorted(right[:, 1], left[:, 0], side="right")
    high = np.searchsorted(right[:, 0], left[:, 1], side="left")
    counts = np.maximum(high - low, 0)
    of_left = np.repeat(np.arange(len(left)), counts)
    begins = np.cumsum(counts) - counts
    of_right = np.arange(len(of_left)) - np.repeat(begins - low, counts)
    return np.column_stack(
        (
            np.maximum(left[of_left, 0], right[of_right, 0]),
            np.minimum(left[of_left, 1], right[of_right, 1]),
        )
    )


def complement(runs: Runs, count: int) -> Runs:
    """Return the blocks of [0, count) that are not in the set."""
    edges: Runs = np.concatenate(([0], runs.reshape(-1), [count])).reshape(-1, 2)
    filled: NDArray[np.bool_] = edges[:, 1] > edges[:, 0]
    return edges[filled]


def true_runs(mask: NDArray[np.bool_]) -> Runs:
    """Return the runs of true cells."""
    # Not np.diff with prepend and append: 12 us for each of a cycle's small pieces, this takes 2.
    padded = np.zeros(len(mask) + 2, np.bool_)
    padded[1:-1] = mask
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges.reshape(-1, 2).astype(np.int64, copy=False)


def length(runs: Runs) -> int:
    """Return how many blocks are in the set."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def expand(runs: Runs) -> NDArray[np.int64]:
    """Return every block of the set, ascending."""
    counts: NDArray[np.int64] = runs[:, 1] - runs[:, 0]
    begins = np.cumsum(counts) - counts
    blocks = np.repeat(runs[:, 0] - begins, counts)
    blocks += np.arange(len(blocks), dtype=np.int64)
    return blocks
