"""One libnbd connection with bounded waits: long requests are cut in pieces, several in flight.

libnbd is handed buffers of our own, which are used again (see `buffers`); copying to and from them costs a tenth of a read. No call waits longer than STALL_TIMEOUT_S for a server that has
stopped moving; the connection is dead then. Not for use by two threads at once.

libnbd comes from the distribution, so it is imported when the first connection is made, and the rest of the
package works without it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secondsite.errors import ConflictError, NoSpaceError, SecondSiteError, UnavailableError, UnsupportedError
from secondsite.nbd.buffers import Buffer, BufferPool
from secondsite.nbd.protocol import BASE_ALLOCATION, STATE_ZERO
from secondsite.nbd.socketpath import reachable

READ_STEP: Final = 256 << 10
ZERO_STEP: Final = 256 << 20
STATUS_STEP: Final = (1 << 32) - (64 << 10)
"""libnbd asks for at most so much at once."""
DEPTH: Final = 8
"""256 KiB x 8 was measured to be the best shape for reads of 1 to 16 MiB: 2.0 to 2.8 GB/s, and 2.0 with 1 MiB x 8."""
STALL_TIMEOUT_S: Final = 120.0

_BUFFERS: Final = BufferPool(READ_STEP)


@dataclass(frozen=True, slots=True)
class _Command:
    """A command in flight, with its place in the range and its buffer if it has one."""

    cookie: int
    at: int
    view: memoryview | None = None
    buffer: Buffer | None = None

    def done(self, into: memoryview | None) -> None:
        """Take what was read, and give the buffer back: the command has ended."""
        if self.view is None or self.buffer is None:
            return
        if into is not None:
            into[self.at : self.at + len(self.view)] = self.view
        _BUFFERS.give(self.buffer)


class Connection:
    """Connected when constructed; raises UnavailableError if that is not done at `deadline` (monotonic)."""

    def __init__(self, socket: Path, export: str, deadline: float) -> None:
        self._nbd = _binding()
        self._socket = socket
        self._handle = self._nbd.NBD()
        try:
            self._handle.set_export_name(export)
            self._handle.add_meta_context(BASE_ALLOCATION)
            # Buffers are always filled or the command fails; clearing them first costs a memory pass.
            self._handle.set_pread_initialize(False)
            with reachable(socket) as name:
                self._handle.aio_connect_unix(name)
                while self._handle.aio_is_connecting():
                    self._poll(deadline)
            self.size = int(self._handle.get_size())
        except (self._nbd.Error, OSError) as error:
            self.close()
            raise UnavailableError(f"cannot connect to {socket}: {error}", socket=str(socket)) from error
        except BaseException:
            self.close()
            raise

    @property
    def dead(self) -> bool:
        """The server is gone, or was given up on; every further call fails."""
        return self._handle is None or self._handle.aio_is_dead() or self._handle.aio_is_closed()

    def close(self) -> None:
        """Close without waiting for the server; safe to repeat."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(self._nbd.Error):  # not connected (any more)
                handle.aio_disconnect()
        # libnbd 1.14 has no close for Python: the handle closes when its last reference goes, which is here.

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`."""
        self._pipeline(
            "read",
            offset,
            len(buffer),
            READ_STEP,
            lambda at, _length, shared: self._handle.aio_pread(shared, offset + at),
            into=buffer,
        )

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data`; durable only after `flush`."""
        self._pipeline(
            "write",
            offset,
            len(data),
            READ_STEP,
            lambda at, _length, shared: self._handle.aio_pwrite(shared, offset + at),
            source=data,
        )

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros and give its space back where the format can."""
        self._pipeline(
            "zero",
            offset,
            length,
            ZERO_STEP,
            lambda at, count, _shared: self._handle.aio_zero(count, offset + at),
        )

    def flush(self) -> None:
        """Return when all that was written on any connection of this server is durable."""
        self._pipeline("flush", 0, 1, 1, lambda _at, _length, _shared: self._handle.aio_flush())

    def status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return (length, zero) of the extents from `offset` on; they may end before the range, or after it."""
        if not self._handle.can_meta_context(BASE_ALLOCATION):
            return [(length, False)]
        found: list[tuple[int, bool]] = []

        def extent(context: str, _offset: int, entries: list[int], _error: object) -> int:
            if context == BASE_ALLOCATION:
                flags = entries[1::2]
                found.extend(
                    (count, bool(state & STATE_ZERO))
                    for count, state in zip(entries[::2], flags, strict=True)
                )
            return 0

        count = min(length, STATUS_STEP)
        self._pipeline(
            "block status",
            offset,
            count,
            count,
            lambda _at, _length, _shared: self._handle.aio_block_status(count, offset, extent),
        )
        if not any(span for span, _ in found):
            raise UnavailableError(f"the server of {self._socket} sent no block status for {offset}")
        return found

    # -- commands in flight --------------------------------------------------------------------------------

    def _pipeline(
        self,
        what: str,
        offset: int,
        length: int,
        step: int,
        issue: Callable[[int, int, Any], int],
        *,
        into: memoryview | None = None,
        source: memoryview | None = None,
    ) -> None:
        """Issue a command for each `step` of the range, at most DEPTH in flight, and wait for all of them.

        into, source: where the data go or come from; `issue` is then given the buffer for them.
        """
        flying: deque[_Command] = deque()
        at = 0
        try:
            while at < length or flying:
                while at < length and len(flying) < DEPTH:
                    flying.append(self._issue(issue, at, min(step, length - at), into, source))
                    at += step
                command = flying.popleft()
                self._complete(command.cookie)
                command.done(into)
        except self._nbd.Error as error:
            self._drain(flying)
            raise self._classified(what, offset, error) from error
        except BaseException:
            self.close()  # commands that still fly keep their buffers
            raise

    def _issue(
        self,
        issue: Callable[[int, int, Any], int],
        at: int,
        length: int,
        into: memoryview | None,
        source: memoryview | None,
    ) -> _Command:
        if into is None and source is None:
            return _Command(issue(at, length, None), at)
        buffer = _BUFFERS.take(self._nbd.Buffer.from_buffer)
        view, shared = buffer.part(length)
        if source is not None:
            view[:] = source[at : at + length]
        try:
            cookie = issue(at, length, shared)
        except self._nbd.Error:
            _BUFFERS.give(buffer)  # nothing was begun
            raise
        return _Command(cookie, at, view, buffer)

    def _complete(self, cookie: int) -> None:
        deadline = time.monotonic() + STALL_TIMEOUT_S
        while not self._handle.aio_command_completed(cookie):
            self._poll(deadline)

    def _drain(self, flying: deque[_Command]) -> None:
        for command in flying:
            if self.dead:
                break
            with contextlib.suppress(self._nbd.Error):
                self._complete(command.cookie)
                command.done(None)
        if self.dead:
            self.close()

    def _poll(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            self.close()
            raise UnavailableError(f"the server of {self._socket} does not answer", socket=str(self._socket))
        self._handle.poll(max(1, int(remaining * 1000)))

    def _classified(self, what: str, offset: int, error: Any) -> SecondSiteError:
        message = f"{what} at {offset} through {self._socket} failed: {error.string}"
        number = error.errnum
        if number in {errno.ENOSPC, errno.EDQUOT}:
            return NoSpaceError(message, hint="free space on the file system of the disk image")
        if number in {errno.EPERM, errno.EROFS}:
            return ConflictError(message, hint="the image is open read-only")
        return UnavailableError(message, socket=str(self._socket))


def _binding() -> Any:
    try:
        return importlib.import_module("nbd")
    except ImportError as error:
        raise UnsupportedError(
            "libnbd's Python binding is not installed", hint="install python3-libnbd of the distribution"
        ) from error
