"""Machines whose block nodes must not be listed just now, and the listing of those of all others.

QEMU 7.2 dies if somebody lists its block nodes between the end of a stream job and the job's dismissal (measured: each
time; a copy-on-read filter that has lost its child is asked for its name). libvirt's block pull leaves such a gap until
libvirtd has taken notice, and statistics of block devices list the nodes. A job of our own dismisses itself, without a gap.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager


class Unlisted:
    """See the module's docstring. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._machines: Counter[str] = Counter()

    @contextmanager
    def machine(self, uuid: str) -> Iterator[None]:
        """Keep listings away from a machine; a listing that is under way is waited for."""
        with self._lock:
            self._machines[uuid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._machines[uuid] -= 1

    @contextmanager
    def listing(self) -> Iterator[Set[str]]:
        """Yield the machines to leave out; no other becomes one of them meanwhile."""
        with self._lock:
            yield {uuid for uuid, count in self._machines.items() if count}
