"""Unlinks what no point, no reader and no sender needs any more.

What it promises: a file that a retained point, a live pin or a cycle under way needs is never unlinked. What it does not do:
while a manifest is damaged, nobody knows what it names, so nothing is unlinked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from secondsite.journal.logs import FileKind, files_of
from secondsite.journal.pins import Pin
from secondsite.journal.store import Store
from secondsite.model.ids import Digest
from secondsite.model.manifest import Manifest

_SEALS = 2
"""A file that two seals in a row did not name is not expected any more: one sender has at most one cycle ahead."""


class Expected:
    """Files that were received, or of which somebody was told that they are here, and that no point names yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seals = 0
        self._names: dict[str, int] = {}
        self._collecting = False

    def add(self, digest: Digest, kind: FileKind) -> None:
        with self._lock:
            self._names[f"{digest}.{kind}"] = self._seals

    def add_all(self, manifest: Manifest) -> None:
        """All files that a point is about to name."""
        with self._lock:
            for disk in manifest.disks.values():
                self._names.update((file.name, self._seals) for file in files_of(disk))

    def sealed(self, manifest: Manifest) -> None:
        """A point was sealed: what it names is held by it, and what is older than two seals was given up."""
        with self._lock:
            self._seals += 1
            if (
                self._collecting
            ):  # it decided before this point was there; what was expected then stays until the end
                return
            for disk in manifest.disks.values():
                for file in files_of(disk):
                    self._names.pop(file.name, None)
            limit = self._seals - _SEALS
            self._names = {name: at for name, at in self._names.items() if at > limit}

    def named(self, manifest: Manifest) -> None:
        """A merged manifest is in place and holds what it names."""
        with self._lock:
            for disk in manifest.disks.values():
                for file in files_of(disk):
                    self._names.pop(file.name, None)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While garbage is collected, nothing that is or becomes expected ceases to be."""
        with self._lock:
            self._collecting = True
        try:
            yield
        finally:
            with self._lock:
                self._collecting = False

    def has(self, name: str) -> bool:
        with self._lock:
            return name in self._names

    def unless_expected(self, name: str, unlink: Callable[[str], int]) -> int:
        """Call `unlink` and return its result if nobody expects the file; nobody can begin to meanwhile."""
        with self._lock:
            return 0 if name in self._names else unlink(name)


def collect(store: Store, expected: Expected, pins: Collection[Pin]) -> int:
    """Unlink garbage; return the bytes given back. The caller holds the pins' lock and got `pins` from it."""
    with expected.collecting():
        # Listed first: a file that arrives later is not in the list, and one that a point names later is expected.
        candidates = {name for name in store.logs.names() if not expected.has(name)}
        state, chain = store.chain()
        if chain.damage is not None or state.sequence is None:
            return 0
        for point in chain.points:
            if point.sequence > state.sequence:
                for disk in point.manifest.disks.values():
                    candidates.difference_update(file.name for file in files_of(disk))
        for pin in pins:
            candidates -= pin.files
        freed = sum(expected.unless_expected(name, store.logs.unlink) for name in sorted(candidates))
        if candidates:
            store.logs.persist()
        return freed
