"""A disk image behind an NBD server, as the base of a journal.

Promises: safe for several threads; a server that was restarted is found again within a bounded time, and reads,
writes and zeroing are repeated there (they are idempotent). `sync` returns only when every write since the last sync
is durable: if the server went away in between, what it had not written back may be lost, so `sync` raises and the
caller repeats its writes. That error comes once; the next sync is about the writes after it.

It does not start servers: `revive`, if given, is called before each attempt to connect again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from secondsite.errors import ConflictError, InvalidInputError, SecondSiteError, UnavailableError
from secondsite.model.units import Buffer
from secondsite.nbd.client import Connection
from secondsite.nbd.disk import Extent

READERS: Final = 4
RECONNECT_TIMEOUT_S: Final = 15.0
_RETRY_S: Final = 0.02

T = TypeVar("T")


class ImageBase:
    """Reads and writes the export `export` of the server on `socket`."""

    def __init__(
        self,
        socket: Path,
        *,
        export: str = "",
        writable: bool = False,
        reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
        revive: Callable[[], None] | None = None,
    ) -> None:
        self._socket = socket
        self._export = export
        self._writable = writable
        self._reconnect_timeout_s = reconnect_timeout_s
        self._revive = revive
        self._closed = threading.Event()
        self._slots = threading.Semaphore(READERS)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        # All writes go through one connection, so that its loss is noticed by the sync that covers them.
        self._write_lock = threading.Lock()
        self._writer: Connection | None = None
        self._unsynced = False
        self._lost = False
        first = self._connect(time.monotonic() + reconnect_timeout_s)
        self._size = first.size
        self._idle.append(first)

    @property
    def size(self) -> int:
        """The disk's size in bytes."""
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; does not sync. Calls under way in other threads end with an error."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        with self._write_lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    # -- reading -------------------------------------------------------------------------------------------

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` from `offset`."""
        self._check_range(offset, len(buffer))
        self._read(lambda connection: connection.read(offset, buffer))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield extents that cover the range in order, neighbours of one state merged."""
        self._check_range(offset, length)
        end = offset + length
        start, zero = offset, False
        while offset < end:
            for span, is_zero in self._read(lambda c, at=offset: c.status(at, end - at)):  # type: ignore[misc]
                if offset >= end:
                    break
                if is_zero != zero:
                    if offset > start:
                        yield Extent(start, offset - start, zero)
                    start, zero = offset, is_zero
                offset = min(offset + span, end)
        if end > start:
            yield Extent(start, end - start, zero)

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what may hold other bytes than zeros."""
        for extent in self.extents(offset, length):
            if not extent.zero:
                yield extent.offset, extent.length

    def _read(self, operation: Callable[[Connection], T]) -> T:
        deadline: float | None = None
        with self._slots:
            while True:
                with self._lock:
                    connection = self._idle.pop() if self._idle else None
                if connection is None:
                    connection = self._connect(deadline or time.monotonic() + self._reconnect_timeout_s)
                try:
                    return operation(connection)
                except SecondSiteError:
                    if not connection.dead:
                        raise
                    deadline = self._deadline_after_loss(deadline)
                finally:
                    self._give_back(connection)

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if not connection.dead and not self._closed.is_set():
                self._idle.append(connection)
                return
        connection.close()

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer) -> None:
        """Write `data`; durable after `sync`."""
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        self._write(lambda connection: connection.write(offset, view))

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, without storing them where the format can; durable after `sync`."""
        self._check_range(offset, length)
        self._write(lambda connection: connection.zero(offset, length))

    def sync(self) -> None:
        """Return when everything written before is durable.

        Raises:
            UnavailableError: writes since the last sync may be lost, so repeat them.
        """
        if not self._writable:
            return
        with self._write_lock:
            if not self._lost:
                self._on_writer(Connection.flush)
            if self._lost:
                self._lost = self._unsynced = False
                raise UnavailableError(
                    f"the server of {self._socket} ended before it had made the writes durable",
                    hint="the writes since the last sync are repeated",
                    socket=str(self._socket),
                )
            self._unsynced = False

    def _write(self, operation: Callable[[Connection], None]) -> None:
        if not self._writable:
            raise ConflictError("the image was opened read-only", socket=str(self._socket))
        with self._write_lock:
            try:
                self._on_writer(operation)
            finally:
                # Set also when it fails, for it may have been done in part. Not set before: a connection that was
                # lost while all was durable has lost nothing.
                self._unsynced = True

    def _on_writer(self, operation: Callable[[Connection], None]) -> None:
        deadline: float | None = None
        while True:
            if self._writer is None:
                self._writer = self._connect(deadline or time.monotonic() + self._reconnect_timeout_s)
            try:
                operation(self._writer)
                return
            except SecondSiteError:
                if not self._writer.dead:
                    raise
                self._writer.close()
                self._writer = None
                self._lost = self._lost or self._unsynced
                deadline = self._deadline_after_loss(deadline)

    # -- connecting ----------------------------------------------------------------------------------------

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise InvalidInputError(
                f"{length} bytes at {offset} are outside of a disk of {self._size}", size=self._size
            )

    def _deadline_after_loss(self, deadline: float | None) -> float:
        """Return until when one call may go on trying: counted from its first lost connection."""
        now = time.monotonic()
        if deadline is None:
            return now + self._reconnect_timeout_s
        if now >= deadline:
            raise UnavailableError(
                f"the server of {self._socket} ends again and again", socket=str(self._socket)
            )
        return deadline

    def _connect(self, deadline: float) -> Connection:
        while not self._closed.is_set():
            try:
                return Connection(self._socket, self._export, deadline)
            except UnavailableError:
                if time.monotonic() + _RETRY_S >= deadline:
                    raise
            if self._revive is not None:
                with contextlib.suppress(UnavailableError):
                    self._revive()
            self._closed.wait(_RETRY_S)
        raise ConflictError("the image was closed", socket=str(self._socket))
