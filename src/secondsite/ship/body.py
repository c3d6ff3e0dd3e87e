"""The body of a request: a stream of known or chunked length, bounded, read once.

Promises: a body is never more than its length or limit; one that ends early, stalls or is malformed raises and marks
itself broken, so that the connection is not used again. It knows nothing of sockets: any stream will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

from secondsite.errors import InvalidInputError, Retry

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}\r\n")


class TooLargeError(InvalidInputError):
    """A body or an expansion of it is larger than the route allows."""

    code = "too_large"


class CutBodyError(InvalidInputError):
    """The peer went away, or stalled, in the middle of its body."""

    code = "cut_body"
    retry = Retry.LATER


class Readable(Protocol):
    """What the body is read from."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end."""
        ...


class ChunkedStream:
    """Undoes the chunked coding (RFC 9112, 7.1) without extensions and trailers. ValueError on anything else.

    cheroot's own reader joins all chunks into one growing buffer; this one hands out what it was asked for.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = 0
        self._started = False
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes of one chunk, b"" after the last."""
        if self._left == 0 and not self._ended:
            self._next_chunk()
        if self._ended:
            return b""
        data: bytes = self._stream.read(min(size, self._left))
        if not data:
            raise ValueError("the body ends within a chunk")
        self._left -= len(data)
        return data

    def _next_chunk(self) -> None:
        if self._started and self._stream.read(2) != b"\r\n":
            raise ValueError("a chunk does not end where it should")
        self._started = True
        line: bytes = self._stream.readline(20)
        if not _CHUNK_SIZE.fullmatch(line):
            raise ValueError("not a chunk's size")
        self._left = int(line, 16)
        if self._left == 0:
            if self._stream.read(2) != b"\r\n":
                raise ValueError("trailers are not taken")
            self._ended = True


class Body:
    """The request's body, read once and in order. `length` is None if it is chunked: then only its end tells."""

    def __init__(self, stream: Readable, length: int | None) -> None:
        self._stream = stream
        self.length = length
        self.limit = 0
        self.received = 0
        self.ended = length == 0
        self.broken = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" only at the end.

        Raises:
            CutBodyError: the peer stopped, or the connection broke, before the end.
            TooLargeError: a chunked body has outgrown the route's limit.
        """
        if self.ended or size <= 0:
            return b""
        wanted = size if self.length is None else min(size, self.length - self.received)
        try:
            data = self._stream.read(wanted)
        except (OSError, ValueError) as error:  # includes time-outs and every TLS failure
            self.broken = True
            raise CutBodyError("the connection broke in the middle of the body", reason=str(error)) from error
        self.received += len(data)
        if self.length is None:
            self.ended = not data
            if self.received > self.limit:
                raise TooLargeError("the body is too large", limit=self.limit)
        elif not data:
            self.broken = True
            raise CutBodyError("the body ended early", expected=self.length, received=self.received)
        else:
            self.ended = self.received == self.length
        return data

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """Yield the rest of the body in pieces of up to `size` bytes."""
        while data := self.read(size):
            yield data

    def read_all(self) -> bytes:
        """Return the rest of the body; the route's limit has bounded it."""
        return b"".join(self.chunks())
