"""The client's end of the NBD protocol, byte by byte, and disks in memory: for tests of the server."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from secondsite.nbd import protocol as p
from secondsite.nbd.disk import Extent


class MemoryDisk:
    """A disk in memory whose extents are found block by block, and which can be told to fail."""

    def __init__(self, content: bytes, block: int = 512) -> None:
        self.content = content
        self.size = len(content)
        self._block = block
        self.fail_from: int | None = None
        self.failure: Exception = OSError(5, "the disk failed")
        self.asked = 0
        """Bytes that extents were asked for, in all."""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if self.fail_from is not None and offset + len(buffer) > self.fail_from:
            raise self.failure
        buffer[:] = self.content[offset : offset + len(buffer)]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """One extent for each block, never merged, and the first and last not clipped."""
        if self.fail_from is not None:
            raise self.failure
        self.asked += length
        for at in range(offset - offset % self._block, offset + length, self._block):
            part = self.content[at : at + self._block]
            yield Extent(at, self._block, not any(part))


def option(number: int, data: bytes = b"") -> bytes:
    """What a client sends for one option."""
    return p.OPTION.pack(p.IHAVEOPT, number, len(data)) + data


def counted(text: str) -> bytes:
    """A name with its u32 length."""
    return p.U32.pack(len(text.encode())) + text.encode()


def go(name: str, *infos: int) -> bytes:
    """The data of GO and INFO."""
    return counted(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def contexts(name: str, *queries: str) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return counted(name) + p.U32.pack(len(queries)) + b"".join(map(counted, queries))


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Split option replies into (option, type, data)."""
    result = []
    while data:
        magic, number, kind, length = p.OPTION_REPLY.unpack_from(data)
        assert magic == p.OPTION_REPLY_MAGIC
        result.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return result


def request(kind: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """One request of the transmission phase."""
    return p.REQUEST.pack(p.REQUEST_MAGIC, flags, kind, cookie, offset, length)


class Client:
    """A raw connection; every receive is bounded."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(20)

    @classmethod
    def connect(cls, path: Path) -> Client:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        return cls(connection)

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            assert part, f"the server closed after {len(data)} of {count} bytes"
            data += part
        return data

    def ended(self) -> bool:
        """Whether the server closes the connection without a further byte."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def greet(self, flags: int = 3) -> None:
        assert self.receive(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        self.send(p.U32.pack(flags))

    def ask(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option and return its replies as (type, data), the final one included."""
        self.send(option(number, data))
        result = []
        while True:
            magic, answered, kind, length = p.OPTION_REPLY.unpack(self.receive(20))
            assert (magic, answered) == (p.OPTION_REPLY_MAGIC, number)
            result.append((kind, self.receive(length)))
            if kind == p.REP_ACK or kind >> 31:
                return result

    def go(self, name: str, *, structured: bool = True, allocation: bool = True) -> None:
        self.greet()
        if structured:
            assert self.ask(p.OPT_STRUCTURED_REPLY) == [(p.REP_ACK, b"")]
            if allocation:
                self.ask(p.OPT_SET_META_CONTEXT, contexts(name, p.BASE_ALLOCATION))
        assert self.ask(p.OPT_GO, go(name))[-1] == (p.REP_ACK, b"")

    def chunk(self) -> tuple[int, int, int, bytes]:
        """Receive a structured chunk: (flags, type, cookie, payload)."""
        magic, flags, kind, cookie, length = p.CHUNK.unpack(self.receive(20))
        assert magic == p.STRUCTURED_REPLY_MAGIC
        return flags, kind, cookie, self.receive(length)

    def error(self) -> tuple[int, int]:
        """Receive a structured error: (cookie, error)."""
        flags, kind, cookie, payload = self.chunk()
        assert flags == p.CHUNK_FLAG_DONE
        assert kind in {p.CHUNK_ERROR, p.CHUNK_ERROR_OFFSET}
        return cookie, p.ERROR_PAYLOAD.unpack_from(payload)[0]

    def data(self) -> tuple[int, bytes]:
        """Receive all chunks of one read: (cookie, data); they must come in order and without gaps."""
        data, first = b"", None
        while True:
            flags, kind, cookie, payload = self.chunk()
            assert kind == p.CHUNK_OFFSET_DATA
            (offset,) = p.U64.unpack_from(payload)
            first = offset if first is None else first
            assert offset == first + len(data)
            data += payload[8:]
            if flags & p.CHUNK_FLAG_DONE:
                return cookie, data
