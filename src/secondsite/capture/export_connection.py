"""One connection to an NBD export, with one meta context: block status asked ahead, and an orderly end.

A connection carries the status of one context only, since a server sends all that were agreed on with every answer: who wants a
dirty bitmap of a large disk would get the disk's whole allocation with it.

No call waits longer than STALL_TIMEOUT_S for a server that has stopped moving. Errors of libnbd leave as they are: the
owner knows what was being done, and translates them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import nbd
import numpy as np

from secondsite.capture.runs import RunList, Runs
from secondsite.errors import UnavailableError
from secondsite.nbd.socketpath import reachable

ALLOCATION: Final = "base:allocation"
BITMAP_PREFIX: Final = "qemu:dirty-bitmap:"
STATE_ZERO: Final = 2
"""The bit of ALLOCATION that says: reads as zeros."""
STATE_DIRTY: Final = 1
"""The bit of a dirty bitmap."""
CONNECT_TIMEOUT_S: Final = 10.0
STALL_TIMEOUT_S: Final = 120.0
_STATUS_STEP: Final = (1 << 32) - (64 << 10)
"""libnbd asks for at most so much at once."""
_STATUS_DEPTH: Final = 16
"""Questions under way at once: as many as QEMU 7.2 works on for one client. One by one, the status of 500 GiB takes 17 ms."""
_FINISH_TIMEOUT_S: Final = 5.0
_FINISH_POLL_MS: Final = 50
_POLL_MS: Final = 250


class _Question(NamedTuple):
    """A status that was asked for: [offset, end) in bytes, and where its entries arrive."""

    cookie: int
    offset: int
    end: int
    entries: list[int]


class ExportConnection:
    """See the module's docstring. For one thread; `finish` may be called by another."""

    def __init__(self, socket: Path, export: str, context: str) -> None:
        self._socket = socket
        self._context = context
        self._connection: Any = nbd.NBD()
        self._finished = False
        try:
            self._connect(export)
            self.size = int(self.handle.get_size())
        except BaseException:
            self.close()
            raise

    @property
    def handle(self) -> Any:
        """libnbd's handle; UnavailableError once it was closed or is to end, so that nothing new is asked."""
        if self._connection is None or self._finished:
            raise UnavailableError(f"the connection to {self._socket} is closed")
        return self._connection

    def finish(self) -> None:
        """Let what is in flight arrive, then say goodbye; from any thread, whatever the reader does. Safe to repeat.

        A backup job must not be ended before: QEMU 7.2 hangs, and its guest with it, if the server is stopped
        while it still writes answers (seen with a paused guest and 8 reads in flight).
        """
        self._finished = True
        handle = self._connection
        if handle is None:
            return
        deadline = time.monotonic() + _FINISH_TIMEOUT_S
        with suppress(nbd.Error):  # the server was faster: nothing is in flight any more
            while handle.aio_in_flight() and time.monotonic() < deadline:
                handle.poll(_FINISH_POLL_MS)
            if not handle.aio_in_flight() and handle.aio_is_ready():
                handle.shutdown()

    def close(self) -> None:
        """Close without waiting for the server; safe to repeat."""
        self._connection = None  # libnbd 1.14 has no call for it: the last reference closes

    def marked(self, within: Runs, flag: int) -> Runs:
        """Return where the context's state has the bit `flag`, in `within`; both are ranges in bytes.

        An answer may be shorter than the question: the rest is asked for again.
        """
        found = RunList()
        wanted = deque(_steps(within))
        flying: deque[_Question] = deque()
        while wanted or flying:
            while wanted and len(flying) < _STATUS_DEPTH:
                flying.append(self._ask(*wanted.popleft()))
            asked = flying.popleft()
            self.complete(asked.cookie)
            reached = min(asked.end, asked.offset + sum(asked.entries[::2]))
            if reached <= asked.offset:
                raise UnavailableError(f"the server of {self._socket} sent no block status at {asked.offset}")
            found.extend(_ranges(asked.entries, flag, asked.offset, reached))
            if reached < asked.end:
                wanted.appendleft((reached, asked.end))
        return found.merged()

    def complete(self, cookie: int) -> None:
        """Wait until a command is done; raises its error."""
        deadline = time.monotonic() + STALL_TIMEOUT_S
        while True:
            connection = self._connection
            if connection is None:
                raise UnavailableError(f"the connection to {self._socket} is closed")
            if connection.aio_command_completed(cookie):
                return
            self._poll(connection, deadline)

    def _ask(self, offset: int, end: int) -> _Question:
        entries: list[int] = []

        def extent(context: str, _offset: int, found: list[int], _error: Any) -> int:
            if context == self._context:
                entries.extend(found)
            return 0

        return _Question(self.handle.aio_block_status(end - offset, offset, extent), offset, end, entries)

    def _connect(self, export: str) -> None:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        handle = self.handle
        handle.set_export_name(export)
        handle.add_meta_context(self._context)
        # A buffer is filled or its command fails; clearing it first costs a pass over the memory.
        handle.set_pread_initialize(False)
        with reachable(self._socket) as name:
            handle.aio_connect_unix(name)
            while handle.aio_is_connecting():
                self._poll(handle, deadline)
        if not handle.can_meta_context(self._context):
            raise UnavailableError(f"the export {export} does not offer {self._context}")

    def _poll(self, handle: Any, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            self.close()
            raise UnavailableError(f"the server of {self._socket} does not answer")
        # libnbd holds the handle's lock while it polls, and `finish` may want it.
        handle.poll(max(1, min(_POLL_MS, int(remaining * 1000))))


def _steps(within: Runs) -> Iterator[tuple[int, int]]:
    for start, end in within.tolist():
        for offset in range(start, end, _STATUS_STEP):
            yield offset, min(end, offset + _STATUS_STEP)


def _ranges(entries: list[int], flag: int, offset: int, end: int) -> Runs:
    pairs = np.array(entries, np.int64).reshape(-1, 2)
    ends = np.minimum(offset + np.cumsum(pairs[:, 0]), end)
    starts = np.concatenate(([offset], ends[:-1]))
    chosen = ((pairs[:, 1] & flag) != 0) & (ends > starts)
    return np.column_stack((starts[chosen], ends[chosen]))
