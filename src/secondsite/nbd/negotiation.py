"""The handshake of a read-only NBD server: bytes in, bytes out, no I/O.

`negotiate` is a generator. It yields a `Step`: bytes to send, and how many bytes it must be given next; it is sent
exactly so many. It returns the `Session` that was agreed on, or None when the client left or was refused. It
never raises on what a client sends, never asks for more than OPTION_DATA_MAX bytes, and ends after OPTIONS_MAX
options; time limits are the caller's.

Fixed newstyle only. Known options are EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT and
SET_META_CONTEXT; any other is answered with ERR_UNSUP, as the protocol demands. TLS is not offered: the socket
is a local one, guarded by file permissions.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from secondsite.nbd import protocol as p
from secondsite.nbd.disk import ReadableDisk

OPTION_DATA_MAX: Final = 64 << 10
"""A name may have 4096 bytes, and meta context queries come several at once; nothing honest is longer."""
OPTIONS_MAX: Final = 1024
"""`nbdinfo --list` asks several options for each export; a client that asks on and on is cut off."""
TRANSMISSION_FLAGS: Final = (
    p.FLAG_HAS_FLAGS | p.FLAG_READ_ONLY | p.FLAG_SEND_FLUSH | p.FLAG_SEND_DF | p.FLAG_CAN_MULTI_CONN
)
PREFERRED_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Session:
    """What a finished handshake agreed on. `final` must be sent before the first reply."""

    name: str
    disk: ReadableDisk
    structured: bool
    allocation: bool
    """base:allocation was selected for this export, so BLOCK_STATUS may be asked."""
    final: bytes


class Step(NamedTuple):
    """Send these bytes, then give me exactly `want` bytes."""

    send: bytes
    want: int


class _MalformedError(Exception):
    """The data of an option does not parse; answered with ERR_INVALID."""


Handshake = Generator[Step, bytes, Session | None]


def negotiate(exports: Mapping[str, ReadableDisk]) -> Handshake:
    """Run the handshake of one connection; see the module's docstring."""
    greeting = p.GREETING.pack(p.NBDMAGIC, p.IHAVEOPT, p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)
    (flags,) = p.CLIENT_FLAGS.unpack((yield Step(greeting, p.CLIENT_FLAGS.size)))
    if flags & ~(p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES):
        return None  # "the server MUST close the connection" on flags it does not know
    options = _Options(exports, no_zeroes=bool(flags & p.FLAG_NO_ZEROES))
    send = b""
    for _ in range(OPTIONS_MAX):
        magic, option, length = p.OPTION.unpack((yield Step(send, p.OPTION.size)))
        if magic != p.IHAVEOPT:
            return None
        if length > OPTION_DATA_MAX:
            # Skipping what a hostile client announces could take for ever; say so and close.
            yield Step(_reply(option, p.REP_ERR_TOO_BIG, b"the option is too long"), 0)
            return None
        data = (yield Step(b"", length)) if length else b""
        if option == p.OPT_EXPORT_NAME:
            return options.export_name(data)
        if option == p.OPT_ABORT:
            yield Step(_reply(option, p.REP_ACK), 0)
            return None
        session, send = options.answer(option, data)
        if session is not None:
            return session
    return None


class _Options:
    """What the options so far have agreed on."""

    def __init__(self, exports: Mapping[str, ReadableDisk], *, no_zeroes: bool) -> None:
        self._exports = exports
        self._no_zeroes = no_zeroes
        self._structured = False
        self._allocation_of: str | None = None  # the export for which base:allocation was selected

    def answer(self, option: int, data: bytes) -> tuple[Session | None, bytes]:
        """Return the session if this option ends the handshake, and the bytes of the reply."""
        try:
            if option in {p.OPT_GO, p.OPT_INFO}:
                return self._info(option, data)
            if option == p.OPT_LIST:
                return None, self._list(data)
            if option == p.OPT_STRUCTURED_REPLY:
                return None, self._structured_reply(data)
            if option in {p.OPT_LIST_META_CONTEXT, p.OPT_SET_META_CONTEXT}:
                return None, self._meta_context(option, data)
        except _MalformedError:
            return None, _reply(option, p.REP_ERR_INVALID, b"the option's data is malformed")
        return None, _reply(option, p.REP_ERR_UNSUP)

    def export_name(self, data: bytes) -> Session | None:
        """The old way into transmission: it has no error reply, so an unknown name closes the connection."""
        try:
            name = self._find(_decode(data))
        except _MalformedError:
            return None
        if name is None:
            return None
        final = p.EXPORT_NAME_REPLY.pack(self._exports[name].size, TRANSMISSION_FLAGS)
        return self._session(name, final if self._no_zeroes else final + bytes(124))

    def _session(self, name: str, final: bytes) -> Session:
        allocation = self._structured and self._allocation_of == name
        return Session(name, self._exports[name], self._structured, allocation, final)

    def _find(self, name: str) -> str | None:
        """Return the export's name. The empty one asks for the default, which exists if there is one export."""
        if name in self._exports:
            return name
        if name == "" and len(self._exports) == 1:
            return next(iter(self._exports))
        return None

    def _info(self, option: int, data: bytes) -> tuple[Session | None, bytes]:
        asked, rest = _take_name(data)
        if len(rest) < 2 or len(rest) != 2 + 2 * p.U16.unpack_from(rest)[0]:
            raise _MalformedError
        wanted = {kind for (kind,) in p.U16.iter_unpack(rest[2:])}
        name = self._find(asked)
        if name is None:
            return None, _reply(option, p.REP_ERR_UNKNOWN, b"no such export")
        size = self._exports[name].size
        send = _reply(
            option, p.REP_INFO, p.INFO_EXPORT_REPLY.pack(p.INFO_EXPORT, size, TRANSMISSION_FLAGS)
        ) + _reply(
            option,
            p.REP_INFO,
            p.INFO_BLOCK_SIZE_REPLY.pack(p.INFO_BLOCK_SIZE, 1, PREFERRED_BLOCK, p.REQUEST_MAX),
        )
        if p.INFO_NAME in wanted:
            send += _reply(option, p.REP_INFO, p.U16.pack(p.INFO_NAME) + name.encode())
        send += _reply(option, p.REP_ACK)
        return (self._session(name, send), b"") if option == p.OPT_GO else (None, send)

    def _structured_reply(self, data: bytes) -> bytes:
        if data:
            raise _MalformedError
        self._structured = True
        return _reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK)

    def _list(self, data: bytes) -> bytes:
        if data:
            raise _MalformedError
        names = (name.encode() for name in self._exports)
        servers = [_reply(p.OPT_LIST, p.REP_SERVER, p.U32.pack(len(name)) + name) for name in names]
        return b"".join([*servers, _reply(p.OPT_LIST, p.REP_ACK)])

    def _meta_context(self, option: int, data: bytes) -> bytes:
        setting = option == p.OPT_SET_META_CONTEXT
        if setting:
            self._allocation_of = None  # each SET replaces the one before, also when it fails
            if not self._structured:
                raise _MalformedError
        asked, rest = _take_name(data)
        queries = _take_queries(rest)
        name = self._find(asked)
        if name is None:
            return _reply(option, p.REP_ERR_UNKNOWN, b"no such export")
        # A bare namespace is a wildcard in LIST only; LIST without queries means everything.
        matching = {p.BASE_ALLOCATION} if setting else {p.BASE_ALLOCATION, "base:"}
        found = bool(matching.intersection(queries)) or (not setting and not queries)
        ack = _reply(option, p.REP_ACK)
        if not found:
            return ack
        if setting:
            self._allocation_of = name
        context = p.U32.pack(p.CONTEXT_ID if setting else 0) + p.BASE_ALLOCATION.encode()
        return _reply(option, p.REP_META_CONTEXT, context) + ack


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def _decode(data: bytes) -> str:
    if len(data) > p.NAME_MAX:
        raise _MalformedError
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _MalformedError from error


def _take_name(data: bytes) -> tuple[str, bytes]:
    """Split a u32-counted name from the front."""
    if len(data) < 4:
        raise _MalformedError
    (length,) = p.U32.unpack_from(data)
    if len(data) - 4 < length:
        raise _MalformedError
    return _decode(data[4 : 4 + length]), data[4 + length :]


def _take_queries(data: bytes) -> list[str]:
    """Parse a u32-counted list of names that fills `data`."""
    if len(data) < 4:
        raise _MalformedError
    (count,) = p.U32.unpack_from(data)
    rest = data[4:]
    queries = []
    for _ in range(count):  # ends early: each query takes at least 4 bytes of at most OPTION_DATA_MAX
        query, rest = _take_name(rest)
        queries.append(query)
    if rest:
        raise _MalformedError
    return queries
