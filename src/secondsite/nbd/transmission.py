"""The transmission phase of one connection: requests in, replies out, one thread.

Replies leave in the order of the requests. Requests that the client has already sent are taken from the socket
with one call and answered with one call, so deep queues of small reads cost few system calls. Long structured
reads are sent in chunks of CHUNK_DATA_MAX, which keeps the buffer in the processor's cache and a hostile client from
making us hold 32 MiB; only simple replies and DF need the whole read in memory.

A read that fails is answered with EIO, logged, and the connection goes on. A request that cannot be framed
(wrong magic) ends the connection.
"""

from __future__ import annotations

import logging
import socket
from typing import Final

from secondsite.errors import SecondSiteError
from secondsite.nbd import protocol as p
from secondsite.nbd.disk import merged_extents
from secondsite.nbd.negotiation import Session

CHUNK_DATA_MAX: Final = 128 << 10
"""Half a core's cache: what was read is sent while it is still there. nbdcopy reads a view a quarter faster than with 1 MiB."""
EXTENTS_MAX: Final = 4096
"""Most extents in one BLOCK_STATUS reply (32 KiB)."""
_RECEIVE: Final = 64 << 10
_PIECES_MAX: Final = 512
"""Most buffers in one sendmsg; the kernel's IOV_MAX is 1024."""
_KNOWN_FLAGS: Final = (
    p.CMD_FLAG_FUA | p.CMD_FLAG_NO_HOLE | p.CMD_FLAG_DF | p.CMD_FLAG_REQ_ONE | p.CMD_FLAG_FAST_ZERO
)

log = logging.getLogger(__name__)


class ConnectionEndedError(Exception):
    """The client left, or sent what cannot be framed."""


class Transmission:
    """Serves `session` over `connection` until the client disconnects; not for use by several threads."""

    def __init__(self, connection: socket.socket, session: Session) -> None:
        self._socket = connection
        self._session = session
        self._disk = session.disk
        self._size = session.disk.size
        self._received = bytearray(_RECEIVE)
        self._start = 0
        self._end = 0
        self._arena = memoryview(bytearray(CHUNK_DATA_MAX))
        self._used = 0
        self._pieces: list[bytes | memoryview] = []

    def run(self) -> None:
        """Serve until the client disconnects properly; raise ConnectionEndedError or OSError otherwise."""
        while True:
            header = self._next_request()
            magic, flags, kind, cookie, offset, length = header
            if magic != p.REQUEST_MAGIC:
                raise ConnectionEndedError("a request without its magic")
            if kind == p.CMD_DISC:
                self._flush()
                return
            self._serve(flags, kind, cookie, offset, length)

    def _serve(self, flags: int, kind: int, cookie: int, offset: int, length: int) -> None:
        if kind == p.CMD_WRITE:
            self._skip(length)
            self._error(cookie, p.EPERM)
        elif kind in {p.CMD_TRIM, p.CMD_WRITE_ZEROES}:
            self._error(cookie, p.EPERM)
        elif flags & ~_KNOWN_FLAGS:
            self._error(cookie, p.EINVAL)
        elif kind == p.CMD_READ:
            self._read(flags, cookie, offset, length)
        elif kind == p.CMD_BLOCK_STATUS:
            self._block_status(flags, cookie, offset, length)
        elif kind == p.CMD_FLUSH:
            self._ok(cookie)  # nothing is ever written, so everything is durable
        else:
            self._error(cookie, p.EINVAL)

    # -- requests ------------------------------------------------------------------------------------------

    def _next_request(self) -> tuple[int, int, int, int, int, int]:
        if self._end - self._start < p.REQUEST.size:
            # Before we may block on the client, it must have all answers that it waits for.
            self._flush()
            self._fill(p.REQUEST.size)
        header = p.REQUEST.unpack_from(self._received, self._start)
        self._start += p.REQUEST.size
        return header

    def _fill(self, count: int) -> None:
        """Receive until at least `count` bytes are buffered."""
        have = self._end - self._start
        if have:
            self._received[:have] = self._received[self._start : self._end]
        self._start, self._end = 0, have
        view = memoryview(self._received)
        while self._end < count:
            received = self._socket.recv_into(view[self._end :])
            if not received:
                raise ConnectionEndedError("the client closed the connection")
            self._end += received

    def _skip(self, count: int) -> None:
        """Drop the payload of a write."""
        if count > p.REQUEST_MAX:
            raise ConnectionEndedError(f"a write of {count} bytes")
        while count:
            if self._start == self._end:
                self._flush()
                self._fill(1)
            step = min(count, self._end - self._start)
            self._start += step
            count -= step

    # -- commands ------------------------------------------------------------------------------------------

    def _read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if length > p.REQUEST_MAX or offset + length > self._size:
            self._error(cookie, p.EINVAL)
        elif not length:
            self._ok(cookie)
        elif self._session.structured and not flags & p.CMD_FLAG_DF:
            self._read_chunks(cookie, offset, length)
        else:
            data = self._room(length)
            if not self._fetch(offset, data):
                self._error(cookie, p.EIO)
            elif self._session.structured:
                self._send_data(cookie, offset, data, done=True)
            else:
                self._send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, cookie), data)

    def _read_chunks(self, cookie: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            data = self._room(min(end - offset, CHUNK_DATA_MAX))
            if not self._fetch(offset, data):
                # Chunks that have left stay valid; the error ends the reply and names where it happened.
                payload = p.ERROR_PAYLOAD.pack(p.EIO, 0) + p.U64.pack(offset)
                self._chunk(cookie, p.CHUNK_ERROR_OFFSET, payload)
                return
            offset += len(data)
            self._send_data(cookie, offset - len(data), data, done=offset == end)

    def _fetch(self, offset: int, buffer: memoryview) -> bool:
        """Read from the disk; log a failure and return False."""
        try:
            self._disk.readinto(offset, buffer)
        except Exception as error:  # noqa: BLE001  whatever a disk raises must not end the connection
            self._log_failure("read", offset, len(buffer), error)
            return False
        return True

    def _block_status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if not self._session.allocation or not length or offset + length > self._size:
            self._error(cookie, p.EINVAL)
            return
        limit = 1 if flags & p.CMD_FLAG_REQ_ONE else EXTENTS_MAX
        try:
            extents = merged_extents(self._disk, offset, length, limit)
        except Exception as error:  # noqa: BLE001  as in _fetch
            self._log_failure("block status", offset, length, error)
            self._error(cookie, p.EIO)
            return
        if not extents:
            log.error("block status of %s at %d has no extents", self._session.name, offset)
            self._error(cookie, p.EIO)
            return
        payload = b"".join(
            p.STATUS_EXTENT.pack(extent.length, p.STATE_HOLE | p.STATE_ZERO if extent.zero else 0)
            for extent in extents
        )
        self._chunk(cookie, p.CHUNK_BLOCK_STATUS, p.U32.pack(p.CONTEXT_ID) + payload)

    def _log_failure(self, what: str, offset: int, length: int, error: Exception) -> None:
        expected = isinstance(error, SecondSiteError | OSError)
        log.error(
            "%s of %s at %d, %d bytes, failed: %s",
            what,
            self._session.name,
            offset,
            length,
            error,
            exc_info=None if expected else error,
        )

    # -- replies -------------------------------------------------------------------------------------------

    def _ok(self, cookie: int) -> None:
        if self._session.structured:
            self._chunk(cookie, p.CHUNK_NONE, b"")
        else:
            self._send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, cookie))

    def _error(self, cookie: int, number: int) -> None:
        if self._session.structured:
            self._chunk(cookie, p.CHUNK_ERROR, p.ERROR_PAYLOAD.pack(number, 0))
        else:
            self._send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, number, cookie))

    def _chunk(self, cookie: int, kind: int, payload: bytes) -> None:
        """Send the last chunk of a reply."""
        header = p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, p.CHUNK_FLAG_DONE, kind, cookie, len(payload))
        self._send(header + payload)

    def _send_data(self, cookie: int, offset: int, data: memoryview, *, done: bool) -> None:
        flags = p.CHUNK_FLAG_DONE if done else 0
        length = len(data) + p.U64.size
        self._send(
            p.CHUNK_DATA.pack(p.STRUCTURED_REPLY_MAGIC, flags, p.CHUNK_OFFSET_DATA, cookie, length, offset),
            data,
        )

    def _room(self, length: int) -> memoryview:
        """Return a buffer that stays untouched until the next flush."""
        if self._used + length > len(self._arena):
            self._flush()
            if length > len(self._arena):
                return memoryview(bytearray(length))  # rare: a long simple or DF read
        self._used += length
        return self._arena[self._used - length : self._used]

    def _send(self, *pieces: bytes | memoryview) -> None:
        self._pieces += pieces
        if len(self._pieces) >= _PIECES_MAX:
            self._flush()

    def _flush(self) -> None:
        """Send what is queued, also over partial sends."""
        pieces = self._pieces
        while pieces:
            sent = self._socket.sendmsg(pieces)
            first = 0
            while first < len(pieces) and sent >= len(pieces[first]):
                sent -= len(pieces[first])
                first += 1
            del pieces[:first]
            if sent:
                pieces[0] = memoryview(pieces[0])[sent:]
        self._used = 0
