"""Any sequence of requests: each gets its replies in order, right bytes or an error, and nothing else ends the connection."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.nbd import protocol as p
from secondsite.nbd.negotiation import Session
from secondsite.nbd.transmission import ConnectionEndedError, Transmission
from support.nbd_wire import Client, MemoryDisk, request

CONTENT = bytes(range(256)) * 32 + bytes(8192)
SIZE = len(CONTENT)

requests = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([p.CMD_READ, p.CMD_BLOCK_STATUS]), st.integers(0, 9)),
        st.one_of(st.sampled_from([0, p.CMD_FLAG_DF, p.CMD_FLAG_REQ_ONE]), st.integers(0, 65535)),
        st.one_of(st.integers(0, SIZE), st.integers(0, (1 << 64) - 1)),
        st.integers(0, SIZE + 2),
    ).filter(lambda fields: fields[0] != p.CMD_DISC),
    max_size=20,
)


def converse(session: Session, sent: bytes) -> bytes:
    """Run a transmission to its end on what a client sends, and return all that it answered."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with ours, suppress(ConnectionEndedError, OSError):
            Transmission(ours, session).run()

    def send() -> None:
        with suppress(OSError):
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=serve), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    with theirs:
        theirs.settimeout(20)
        answered = bytearray()
        with suppress(ConnectionResetError):
            while part := theirs.recv(1 << 20):
                answered += part
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return bytes(answered)


@settings(deadline=None, max_examples=60)
@given(requests, st.booleans())
def test_every_request_is_answered_once_and_in_order(
    asked: list[tuple[int, int, int, int]], allocation: bool
) -> None:
    disk = MemoryDisk(CONTENT)
    sent = b"".join(
        request(kind, cookie, offset, length, flags) + (bytes(length) if kind == p.CMD_WRITE else b"")
        for cookie, (kind, flags, offset, length) in enumerate(asked)
    )
    session = Session("vda", disk, structured=True, allocation=allocation, final=b"")
    answered = converse(session, sent + request(p.CMD_DISC, 0))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (theirs.sendall(answered), theirs.close()))
        sender.start()
        client = Client(ours)
        for cookie, (kind, _, offset, length) in enumerate(asked):
            data, last = b"", False
            while not last:
                flags, chunk, answered_cookie, payload = client.chunk()
                assert answered_cookie == cookie
                last = bool(flags & p.CHUNK_FLAG_DONE)
                if chunk == p.CHUNK_OFFSET_DATA:
                    assert kind == p.CMD_READ
                    data += payload[8:]
                elif chunk == p.CHUNK_BLOCK_STATUS:
                    assert kind == p.CMD_BLOCK_STATUS
                    check_status(offset, length, payload)
                elif chunk == p.CHUNK_NONE:
                    assert kind == p.CMD_FLUSH or length == 0
                else:
                    assert chunk == p.CHUNK_ERROR
                    break
            if data:
                assert data == CONTENT[offset : offset + length]
        assert client.ended()
        sender.join(20)


def check_status(offset: int, length: int, payload: bytes) -> None:
    at = offset
    for span, flags in p.STATUS_EXTENT.iter_unpack(payload[4:]):
        assert span > 0
        if flags == 3:
            assert not any(CONTENT[at : at + span])
        at += span
    assert offset < at <= offset + length


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400))
@pytest.mark.parametrize("structured", [True, False])
def test_garbage_ends_the_connection_and_nothing_else(structured: bool, data: bytes) -> None:
    session = Session("vda", MemoryDisk(CONTENT), structured=structured, allocation=structured, final=b"")
    if not data.startswith(p.U32.pack(p.REQUEST_MAGIC)):
        assert converse(session, data) == b""
