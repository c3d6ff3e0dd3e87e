"""The body of a request: a stream of known or chunked length, bounded, read once.

Promises: a body is never more than its length or limit; one that ends early, stalls or is malformed raises and marks
itself broken, so that the connection is not used again. It knows nothing of sockets: any stream will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from secondsite.errors import InvalidInputError, Retry

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}\r\n")


class TooLargeError(InvalidInputError):
    """A body or an expansion of it is larger than the route allows."""

    code = "too_large"


class CutBodyError(InvalidInputError):
    """The peer went away, or stalled, in the middle of its body."""

    code = "cut_body"
    retry = Retry.LATER


class Stream(Protocol):
    """What a body is read from."""

    def readinto(self, view: memoryview) -> int:
        """Fill `view`; fewer bytes only at the end."""
        ...

    def readline(self, limit: int) -> bytes:
        """Return bytes up to and with the next line feed, at most `limit`."""
        ...


class _Plain:
    """Exactly `length` bytes of a stream."""

    def __init__(self, stream: Stream, length: int) -> None:
        self._stream = stream
        self._left = length

    def readinto(self, view: memoryview) -> int:
        count = self._stream.readinto(view[: self._left])
        if count < min(len(view), self._left):
            raise ValueError("the body ends early")
        self._left -= count
        return count


class _Chunked:
    """Undoes the chunked coding (RFC 9112, 7.1) without extensions and trailers. ValueError on anything else.

    cheroot's own reader joins all chunks into one growing buffer; this one fills the buffer that it is given.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0
        self._started = False
        self._ended = False

    def readinto(self, view: memoryview) -> int:
        done = 0
        while done < len(view) and not self._ended:
            if self._left == 0:
                self._next_chunk()
                continue
            wanted = min(len(view) - done, self._left)
            if self._stream.readinto(view[done : done + wanted]) != wanted:
                raise ValueError("the body ends within a chunk")
            self._left -= wanted
            done += wanted
        return done

    def _next_chunk(self) -> None:
        if self._started and self._stream.readline(2) != b"\r\n":
            raise ValueError("a chunk does not end where it should")
        self._started = True
        line = self._stream.readline(20)
        if not _CHUNK_SIZE.fullmatch(line):
            raise ValueError("not a chunk's size")
        self._left = int(line, 16)
        if self._left == 0:
            if self._stream.readline(2) != b"\r\n":
                raise ValueError("trailers are not taken")
            self._ended = True


class Body:
    """The request's body, read once and in order. `length` is None if it is chunked: then only its end tells."""

    def __init__(self, stream: Stream, length: int | None) -> None:
        self._source = _Chunked(stream) if length is None else _Plain(stream, length)
        self.length = length
        self.limit = 0
        self.received = 0
        self.ended = length == 0
        self.broken = False

    def readinto(self, view: memoryview) -> int:
        """Fill `view`; fewer bytes only at the end, where it returns 0.

        Raises:
            CutBodyError: the peer stopped, or the connection broke, before the end.
            TooLargeError: a chunked body has outgrown the route's limit.
        """
        if self.ended or not view:
            return 0
        try:
            count = self._source.readinto(view)
        except (OSError, ValueError) as error:  # includes time-outs and every TLS failure
            self.broken = True
            raise CutBodyError(
                "the body ended early", reason=str(error), expected=self.length, received=self.received
            ) from error
        self.received += count
        if self.length is not None:
            self.ended = self.received == self.length
        elif self.received > self.limit:
            raise TooLargeError("the body is too large", limit=self.limit)
        else:
            self.ended = count < len(view)
        return count

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" only at the end; raises as `readinto`."""
        buffer = bytearray(size if self.length is None else min(size, self.length - self.received))
        count = self.readinto(memoryview(buffer))
        return bytes(memoryview(buffer)[:count])

    def chunks(self, size: int = 1 << 20) -> Iterator[memoryview]:
        """Yield the rest of the body in pieces of up to `size` bytes; each is valid until the next is taken."""
        view = memoryview(bytearray(size if self.length is None else min(size, self.length - self.received)))
        while count := self.readinto(view):
            yield view[:count]

    def read_all(self) -> bytes:
        """Return the rest of the body; the route's limit has bounded it."""
        whole = bytearray()
        for piece in self.chunks():
            whole += piece
        return bytes(whole)
