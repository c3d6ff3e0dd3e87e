"""The receiving end of the data plane: parses and bounds what comes, and hands it to a Receiver.

Promises: nothing reaches the receiver but well-formed ids, numbers and names; a part is at most PART_FILE_MAX bytes
after expansion, whatever it claims; memory per upload is a few MiB; an upload that is cut leaves nothing (the
receiver's Incoming is left without commit).

It does not decide who may write to which item, nor compare epochs and digests: the Receiver does, under its locks.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, Final, Protocol, Self, cast

import zstandard

from secondsite.errors import CorruptError, InvalidInputError
from secondsite.model.ids import (
    Digest,
    DiskKey,
    Epoch,
    ItemId,
    NodeId,
    parse_digest,
    parse_disk_key,
    parse_item_id,
)
from secondsite.model.manifest import MANIFEST_BYTES_MAX
from secondsite.model.units import MIB, Buffer
from secondsite.ship.admission import Negotiator
from secondsite.ship.http import Body, HttpsServer, Limits, Request, Response, Router, TooLargeError
from secondsite.ship.identity import ClientCertificates, Clock, Credentials, utc_now
from secondsite.ship.protocol import (
    CELL_BYTES,
    DIGESTS_PATH,
    EPOCH_HEADER,
    INITIAL_PATH,
    ITEM_PATH,
    LENGTH_HEADER,
    MISSING_PATH,
    PART_FILE_MAX,
    PART_PATH,
    PART_WIRE_MAX,
    POINTS_PATH,
    SESSION_PATH,
    ZSTD_WINDOW_MAX,
    CellRange,
    Encoding,
    PartKind,
    PartRef,
    ReplicaStatus,
    parse_digests,
    parse_header_number,
    parse_kind,
    parse_number,
    parse_parts,
    parse_ranges,
)

TICKET_HEAD_BYTES: Final = 96 << 10
"""Tickets of directories with many groups reach 48,000 bytes, a third more in base64."""
_CHUNK: Final = MIB


class Incoming(Protocol):
    """One part that is being received."""

    def write(self, data: Buffer) -> object:
        """Take the next bytes; `data` is the caller's again afterwards."""
        ...

    def commit(self) -> object:
        """Make the part durable under its digest; CorruptError if the bytes have another one."""
        ...


class Receiver(Protocol):
    """What the listener serves: the items of a target. Called from many threads at once.

    Every method first checks that `peer` may do this to `item` (NotFoundError or ForbiddenError: the listener does
    not know), and those with an epoch that it is the item's (StaleEpochError). All may be repeated.
    """

    def status(self, item: ItemId, peer: NodeId) -> ReplicaStatus:
        """Return where the replica stands."""
        ...

    def has(self, item: ItemId, peer: NodeId, epoch: Epoch, parts: Sequence[PartRef]) -> set[Digest]:
        """Return the digests of those parts that are *missing*."""
        ...

    def incoming(
        self, item: ItemId, peer: NodeId, epoch: Epoch, digest: Digest, kind: PartKind
    ) -> AbstractContextManager[Incoming]:
        """Take a part. Left without `commit`, nothing stays. The same digest may come twice at the same time."""
        ...

    def apply_initial(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, digests: Sequence[Digest]
    ) -> None:
        """Fold received parts into the base of an item without a point; durable on return."""
        ...

    def seal(self, item: ItemId, peer: NodeId, epoch: Epoch, manifest: bytes) -> Digest:
        """Make the point of these exact bytes exist; durable on return. OutOfSequenceError if it does not follow."""
        ...

    def digests(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, ranges: Sequence[CellRange]
    ) -> Iterator[bytes]:
        """Yield the cells of these ranges at the last point: little-endian u64, 8 bytes a block, in order."""
        ...


class Listener:
    """An HTTPS server with client certificates required, in front of a Receiver.

    With a `negotiator` it asks for Kerberos tickets instead, and for no certificate.
    """

    def __init__(
        self,
        address: tuple[str, int],
        credentials: Credentials,
        receiver: Receiver,
        *,
        threads: int = 16,
        limits: Limits | None = None,
        is_revoked: Callable[[int], bool] | None = None,
        clock: Clock = utc_now,
        client_certificates: ssl.VerifyMode = ClientCertificates.REQUIRED,
        negotiator: Negotiator | None = None,
        is_removed: Callable[[NodeId], bool] | None = None,
    ) -> None:
        if negotiator is not None:
            client_certificates = ClientCertificates.NONE
            limits = limits or Limits(head_bytes=TICKET_HEAD_BYTES)
        self._server = HttpsServer(
            address,
            credentials,
            make_router(receiver),
            client_certificates=client_certificates,
            threads=threads,
            limits=limits,
            is_revoked=is_revoked,
            clock=clock,
            negotiator=negotiator,
            is_removed=is_removed,
        )

    @property
    def address(self) -> tuple[str, int]:
        """The bound address."""
        return self._server.address

    def start(self) -> None:
        """Listen; see HttpsServer.start."""
        self._server.start()

    def stop(self) -> None:
        """Stop; uploads that do not end within a few seconds are cut, which is safe."""
        self._server.stop()

    def reload(self, credentials: Credentials | None = None) -> None:
        """Use renewed credentials for new connections."""
        self._server.reload(credentials)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def make_router(receiver: Receiver) -> Router:
    """Return the routes of the data plane, for a server of one's own."""
    handlers = _Handlers(receiver)
    router = Router()
    router.add("GET", SESSION_PATH, handlers.session)
    router.add("GET", ITEM_PATH, handlers.status)
    router.add("POST", MISSING_PATH, handlers.missing)
    router.add("PUT", PART_PATH, handlers.part, body_max=PART_WIRE_MAX)
    router.add("POST", INITIAL_PATH, handlers.initial)
    router.add("POST", POINTS_PATH, handlers.point, body_max=MANIFEST_BYTES_MAX)
    router.add("POST", DIGESTS_PATH, handlers.digests)
    return router


class _Handlers:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def session(self, request: Request) -> dict[str, Any]:
        return {"node": request.known_peer}

    def status(self, request: Request) -> dict[str, Any]:
        return self._receiver.status(_item(request), request.known_peer).to_dict()

    def missing(self, request: Request) -> dict[str, Any]:
        document = request.json()
        parts = parse_parts(document.get("parts"))
        epoch = Epoch(parse_number(document.get("epoch"), "epoch", least=1))
        missing = self._receiver.has(_item(request), request.known_peer, epoch, parts)
        return {"missing": sorted(missing)}

    def part(self, request: Request) -> dict[str, Any]:
        item, peer, epoch = _item(request), request.known_peer, _epoch(request)
        digest, kind = parse_digest(request.params["digest"]), parse_kind(request.query.get("kind"))
        length = parse_header_number(request.headers.get(LENGTH_HEADER.lower()), LENGTH_HEADER, least=1)
        if length > PART_FILE_MAX:
            raise TooLargeError("the part is too large", length=length, limit=PART_FILE_MAX)
        encoding = request.headers.get("content-encoding", Encoding.IDENTITY.value)
        with self._receiver.incoming(item, peer, epoch, digest, kind) as incoming:
            for data in _expanded(request.body, encoding, length):
                incoming.write(data)
            incoming.commit()
        return {}

    def initial(self, request: Request) -> dict[str, Any]:
        document = request.json()
        epoch = Epoch(parse_number(document.get("epoch"), "epoch", least=1))
        disk, digests = parse_disk_key(document.get("disk")), parse_digests(document.get("digests"))
        self._receiver.apply_initial(_item(request), request.known_peer, epoch, disk, digests)
        return {}

    def point(self, request: Request) -> dict[str, Any]:
        item, peer, epoch = _item(request), request.known_peer, _epoch(request)
        return {"digest": self._receiver.seal(item, peer, epoch, request.body.read_all())}

    def digests(self, request: Request) -> Response:
        document = request.json()
        epoch = Epoch(parse_number(document.get("epoch"), "epoch", least=1))
        disk, ranges = parse_disk_key(document.get("disk")), parse_ranges(document.get("ranges"))
        length = CELL_BYTES * sum(part.cells for part in ranges)
        cells = self._receiver.digests(_item(request), request.known_peer, epoch, disk, ranges)
        # The first piece is taken before the answer begins, so that a refusal still gets its own status.
        first = next(cells, b"")
        return Response(body=_exactly(first, cells, length), length=length)


def _item(request: Request) -> ItemId:
    return parse_item_id(request.params["item"])


def _epoch(request: Request) -> Epoch:
    return Epoch(parse_header_number(request.headers.get(EPOCH_HEADER.lower()), EPOCH_HEADER, least=1))


def _expanded(body: Body, encoding: str, length: int) -> Iterator[Buffer]:
    """Yield exactly `length` bytes of the part, or raise before the receiver could commit."""
    pieces: Iterator[Buffer]
    if encoding == Encoding.ZSTD:
        pieces = _unzipped(body)
    elif encoding == Encoding.IDENTITY:
        pieces = body.chunks(_CHUNK)
    else:
        raise InvalidInputError(f"content encoding {encoding[:40]!r} is not taken", hint="identity or zstd")
    left = length
    for data in pieces:
        left -= len(data)
        if left < 0:
            raise TooLargeError("the part is longer than it claims to be", claimed=length)
        yield data
    if left:
        raise CorruptError("the part is shorter than it claims to be", claimed=length, missing=left)


def _unzipped(body: Body) -> Iterator[bytes]:
    # A frame may ask for a window of gigabytes; ours need 2 MiB at most. Output comes in pieces of _CHUNK, so a
    # bomb is noticed by its length before it is large.
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    with decompressor.stream_reader(
        cast("IO[bytes]", body), _CHUNK, read_across_frames=True, closefd=False
    ) as reader:
        while True:
            try:
                data = reader.read(_CHUNK)
            except zstandard.ZstdError as error:
                raise CorruptError("the part does not decompress", reason=str(error)) from error
            if not data:
                return
            yield data


def _exactly(first: bytes, rest: Iterator[bytes], length: int) -> Iterator[bytes]:
    """Yield all pieces; raise (and so cut the connection) if they are not `length` bytes."""
    sent = len(first)
    yield first
    for piece in rest:
        sent += len(piece)
        yield piece
    if sent != length:
        raise CorruptError("the digests are not as long as they should be", expected=length, sent=sent)
