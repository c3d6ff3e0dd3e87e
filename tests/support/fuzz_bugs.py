"""Bugs to plant, so that the fuzzer can be seen to find them: each is a mistake that is easily made, in the product's own code, put in place for a while.

A bug replaces one function or constant by what somebody in a hurry would have written. `target` is where it must be found.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from secondsite.errors import CorruptError, UnsupportedError
from secondsite.hrl import reader
from secondsite.hrl.format import METADATA_HEADER
from secondsite.journal import documents, pins, points
from secondsite.journal.base import BaseSpec
from secondsite.journal.logs import LogStore
from secondsite.model import ids, manifest
from secondsite.nbd import negotiation, transmission
from secondsite.nbd import protocol as p
from secondsite.service.usecases import setup
from secondsite.ship import body, listener, protocol, routing
from support import fuzz_files


@dataclass(frozen=True)
class Bug:
    """One mistake. `places`: (where, name, replacement)."""

    target: str
    why: str
    places: tuple[tuple[Any, str, Any], ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the mistake within."""
        with _all([patch.object(where, name, instead) for where, name, instead in self.places]):
            yield


@contextmanager
def _all(patches: list[Any]) -> Iterator[None]:
    if not patches:
        yield
        return
    with patches[0], _all(patches[1:]):
        yield


# -- logs and lists ----------------------------------------------------------------------------------------


def _walk_back_without_progress(read_at: Any, end: int, size: int) -> Any:
    """A distance of zero is not taken for the first block but for "the same again"."""
    positions, valid, blocks, position = [], [], [], end - size
    while True:
        block = reader._read(read_at, position, size)
        distance, count, _ = METADATA_HEADER.unpack_from(block)
        positions.append(position)
        valid.append(count)
        blocks.append(block)
        position -= distance
        if position <= 4096:
            break
    return np.array(positions[::-1], np.int64), np.array(valid[::-1], np.int64), b"".join(blocks[::-1])


def _read_log_without_length(read_at: Any, length: int) -> Any:
    """The header is unpacked whatever came."""
    data = read_at(0, 4096)
    struct.unpack_from("<8sII4sIQQIQiI16s16sIQI2s16s", data)
    return _REAL_READ_LOG(read_at, length)


_REAL_READ_LOG: Final = reader.read_log


def _decode_zeros_trusting(data: Any) -> Any:
    """The count in the header is believed before the length is looked at."""
    view = memoryview(data).cast("B")
    if len(view) < 24 or bytes(view[:8]) != b"SSZEROS\n":
        raise CorruptError("not a list")
    count = min(struct.unpack_from("<Q", view, 16)[0], 1 << 60)
    room = np.ones((count, 2), np.int64)
    found = np.frombuffer(view, "<u8", offset=24)
    room.reshape(-1)[: len(found)] = found[: 2 * count]
    return room


def _decode_zeros_of_any_order(data: Any) -> Any:
    """Each extent is looked at, but not the one before it."""
    if (
        len(data) < 24
        or data[:8] != b"SSZEROS\n"
        or struct.unpack_from("<IIQ", data, 8) != (1, 0, len(data) // 16 - 1)
    ):
        raise CorruptError("not a list")
    pairs = np.frombuffer(data[24 : 24 + (len(data) - 24) // 16 * 16], "<u8").reshape(-1, 2)
    if len(data) % 16 != 8 or (pairs >= 1 << 62).any() or (pairs % 512).any() or (pairs[:, 1] == 0).any():
        raise CorruptError("not sectors")
    return pairs.astype(np.int64)


# -- manifests and documents -------------------------------------------------------------------------------


def _from_bytes_without_care(_cls: Any, data: bytes) -> manifest.Manifest:
    """Only what json raises for wrong text is thought of."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise CorruptError("not JSON") from error
    if document.get("format") != manifest.FORMAT:
        raise UnsupportedError("another format")
    return manifest._parse(document)


def _whole_of_anything(value: Any) -> int:
    return int(value)


def _base_anywhere(folder: Path, _disk: str, fields: dict[str, Any]) -> BaseSpec:
    """The path in the document is followed wherever it leads."""
    base = fields["base"]
    kind: Any = "image" if base["kind"] == "image" else "raw"
    grown = documents._whole(fields["grown_from"]) if "grown_from" in fields else None
    return BaseSpec(kind, folder / base["path"], str(base["format"]), documents._whole(fields["size"]), grown)


def _pin_without_care(data: bytes, _path: Path) -> pins.Pin:
    document = json.loads(data)
    return pins.Pin(document["sequence"], document["owner"], lasting=True)


def _any_text(text: object) -> Any:
    return ids.Digest(str(text))


# -- the view server ---------------------------------------------------------------------------------------


def _queries_without_progress(data: bytes) -> list[str]:
    """A query is taken to be there because the count says so."""
    (count,) = p.U32.unpack_from(data) if len(data) >= 4 else (0,)
    queries, rest = [], data[4:]
    for _ in range(count):
        query, rest = negotiation._take_name(rest) if rest else ("", rest)
        queries.append(query)
    return queries


def _name_without_length(data: bytes) -> tuple[str, bytes]:
    (length,) = p.U32.unpack_from(data)
    return data[4 : 4 + length].decode(), data[4 + length :]


def _read_unbounded(self: Any, _flags: int, cookie: int, offset: int, length: int) -> None:
    """The length of a read is not compared with the disk, nor with the largest one."""
    data = memoryview(bytearray(length))
    if self._fetch(offset, data):
        self._send_data(cookie, offset, data, done=True)
    else:
        self._error(cookie, p.EIO)


def _fill_without_end(self: Any, count: int) -> None:
    """A connection that has ended is waited for."""
    have = self._end - self._start
    self._received[:have] = self._received[self._start : self._end]
    self._start, self._end = 0, have
    while self._end < count:
        self._end += self._socket.recv_into(memoryview(self._received)[self._end :])


# -- the listener ------------------------------------------------------------------------------------------


def _next_chunk_without_end(self: Any) -> None:
    """A chunk of no size is skipped, and so is the end of the connection."""
    line = self._stream.readline(20).strip()
    self._left = int(line, 16) if line.isalnum() and all(c in b"0123456789abcdefABCDEF" for c in line) else 0


def _expanded_unbounded(request_body: Any, encoding: str, _length: int) -> Iterator[Any]:
    """What comes out of a frame is taken, whatever its claim."""
    yield from listener._unzipped(request_body) if encoding == "zstd" else request_body.chunks(1 << 20)


def _ranges_unchecked(value: Any) -> list[protocol.CellRange]:
    return [protocol.CellRange(first, cells) for first, cells in value]


def _parse_sequences_of_any_size(value: object, *, least: int, most: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
        raise ValueError("not a number")
    return value


def _length_unchecked(self: LogStore, digest: Any, kind: Any) -> int | None:
    try:
        with (self.folder / f"{digest}.{kind}").open("rb") as file:
            return file.seek(0, 2)
    except FileNotFoundError:
        return None


def _json_without_care(data: bytes) -> Any:
    return json.loads(data)


def _acknowledged_early(_self: Any, _data: bytes, _sequence: Any) -> None:
    """A point is answered for, and written some time."""


def _broken(*_: object, **__: object) -> Any:
    raise KeyError("nobody thought of this")


BUGS: Final[Mapping[str, Bug]] = {
    "log-zero-distance": Bug("log", "an endless loop on a block that leads nowhere", ((reader, "_walk_back", _walk_back_without_progress),)),
    "log-short-header": Bug("log", "an uncaught struct.error", ((fuzz_files, "read_log", _read_log_without_length),)),
    "log-unchecked-ranges": Bug("log", "an entry's offset and length are believed", ((reader, "_check_ranges", lambda _entries, _size: None),)),
    "log-unchecked-space": Bug("log", "data are placed by the lengths that entries claim",
        ((reader, "_locations", lambda header, positions, block_of, lengths: np.cumsum(lengths) - lengths + 4096),)),
    "zeros-trusted-count": Bug("zeros", "memory for a promised count", ((fuzz_files, "decode_zeros", _decode_zeros_trusting),)),
    "zeros-any-order": Bug("zeros", "overlapping extents are taken", ((fuzz_files, "decode_zeros", _decode_zeros_of_any_order),)),
    "manifest-deep": Bug("manifest", "an uncaught RecursionError, KeyError or TypeError", ((manifest.Manifest, "from_bytes", classmethod(_from_bytes_without_care)),)),
    "documents-any-number": Bug("documents", "int() of what JSON brings", ((documents, "_whole", _whole_of_anything),)),
    "documents-any-path": Bug("documents", "a base outside of the journal", ((documents, "_base_spec", _base_anywhere),)),
    "pins-deep": Bug("documents", "an uncaught error from a pin", ((pins, "_parse", _pin_without_care),)),
    "journal-deep-pin": Bug("journal", "an uncaught error from a pin", ((pins, "_parse", _pin_without_care),)),
    "nbd-endless-queries": Bug("nbd", "a list as long as its count promises", ((negotiation, "_take_queries", _queries_without_progress),)),
    "nbd-name-length": Bug("nbd", "an uncaught struct.error in the handshake", ((negotiation, "_take_name", _name_without_length),)),
    "nbd-option-length": Bug("nbd", "an option as long as it says", ((negotiation, "OPTION_DATA_MAX", 1 << 33),)),
    "nbd-read-length": Bug("nbd", "a read as long as it asks", ((transmission.Transmission, "_read", _read_unbounded),)),
    "nbd-endless-fill": Bug("nbd", "an endless loop when the client has left", ((transmission.Transmission, "_fill", _fill_without_end),)),
    "ship-endless-chunks": Bug("ship", "an endless loop on a chunk of zero length", ((body._Chunked, "_next_chunk", _next_chunk_without_end),)),
    "ship-ranges": Bug("ship", "ranges that are not checked", ((listener, "parse_ranges", _ranges_unchecked),)),
    "ship-any-disk": Bug("ship", "a disk's name as a path", ((listener, "parse_disk_key", _any_text),)),
    "ship-any-digest": Bug("ship", "a digest as a path",
        ((listener, "parse_digest", _any_text), (protocol, "parse_digest", _any_text), (LogStore, "length", _length_unchecked))),
    "ship-sequence": Bug("ship", "a point that no file name can carry is acknowledged", ((manifest, "_integer", _parse_sequences_of_any_size),)),
    "ship-json": Bug("ship", "an uncaught error from a body that is no JSON", ((routing, "parse_object", _json_without_care),)),
    "ship-early-answer": Bug("ship", "a point is acknowledged before it is written", ((points.PointStore, "write", _acknowledged_early),)),
    "ship-unbounded-part": Bug("ship", "a part longer than it claims is taken", ((listener, "_expanded", _expanded_unbounded),)),
    "api-uncaught": Bug("api", "an uncaught error behind one route", ((setup, "create_site", _broken),)),
}  # fmt: skip
