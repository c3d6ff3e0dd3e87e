"""Buffers for libnbd's reads and writes that are used again for the life of the process.

libnbd's Python binding (1.14, of Debian 12) keeps a reference to the buffer of every `aio_pread` and `aio_pwrite` for ever: a buffer that
was handed to it once is never freed. A node that reads with 8 fresh buffers of 1 MiB in each cycle of 5 s so loses up to 138 GB a day. So
buffers are taken from here and given back, and what is handed over is the same object each time.

Promises: a buffer that was taken is nobody else's until it is given back; the pool grows to what is in use at one time and never shrinks.
Thread-safe. Who cannot tell whether libnbd may still fill a buffer (its connection broke with the command in flight) does not give it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np

SHARED_MAX: Final = 512
"""Lengths for which a buffer keeps what libnbd is handed: each is a small object that could never be freed."""


class Buffer:
    """Memory of a fixed size. `share` is `nbd.Buffer.from_buffer`."""

    def __init__(self, size: int, share: Callable[[memoryview], Any]) -> None:
        # Not a bytearray, which is cleared: eight of 1 MiB were 4 ms of a cycle in which nothing had changed.
        self.memory = np.empty(size, np.uint8).data
        self._share = share
        self._shared: dict[int, tuple[memoryview, Any]] = {}

    def part(self, length: int) -> tuple[memoryview, Any]:
        """Return the first `length` bytes, as a view and as what libnbd takes."""
        found = self._shared.get(length)
        if found is None:
            view = self.memory[:length]
            found = view, self._share(view)
            if len(self._shared) < SHARED_MAX:
                self._shared[length] = found
        return found


class BufferPool:
    """See the module's docstring."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[Buffer] = []
        self._lock = threading.Lock()

    def take(self, share: Callable[[memoryview], Any]) -> Buffer:
        """Return a buffer that nobody uses."""
        with self._lock:
            return self._free.pop() if self._free else Buffer(self.size, share)

    def give(self, buffer: Buffer) -> None:
        """Give a buffer back: libnbd is done with it, and so is its reader."""
        with self._lock:
            self._free.append(buffer)
