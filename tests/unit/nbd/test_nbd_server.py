"""The server over its real socket: requests and replies as bytes, hostile clients, failing disks, restarts."""

from __future__ import annotations

import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.errors import CorruptError, InvalidInputError, UnavailableError
from secondsite.nbd import protocol as p
from secondsite.nbd.server import NbdServer
from secondsite.nbd.transmission import CHUNK_DATA_MAX, EXTENTS_MAX
from support.nbd_wire import Client, MemoryDisk, contexts, go, option, request

CONTENT = bytes(range(256)) * 16 + bytes(4096) + b"\x07" * 1024 + bytes(3072)  # 4096 data, zeros, data, zeros


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ssn", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(CONTENT)


@pytest.fixture
def server(folder: Path, disk: MemoryDisk) -> Iterator[NbdServer]:
    with NbdServer({"vda": disk}, folder / "s") as running:
        yield running


@pytest.fixture
def client(server: NbdServer) -> Iterator[Client]:
    connected = Client.connect(server.path)
    yield connected
    connected.close()


def test_handshake_byte_by_byte_is_the_same_as_whole(client: Client) -> None:
    sent = (
        p.U32.pack(3)
        + option(p.OPT_STRUCTURED_REPLY)
        + option(p.OPT_SET_META_CONTEXT, contexts("vda", "base:allocation"))
        + option(p.OPT_GO, go("vda"))
        + request(p.CMD_READ, 7, 0, 512)
    )
    assert client.receive(18) == b"NBDMAGICIHAVEOPT\x00\x03"
    for byte in sent:
        client.send(bytes([byte]))
    client.receive(20 + (20 + 4 + 15) + 20 + (20 + 12) + (20 + 14) + 20)
    assert client.data() == (7, CONTENT[:512])


def test_structured_read_returns_the_bytes(client: Client) -> None:
    client.go("vda")
    client.send(request(p.CMD_READ, 1, 100, 5000))
    assert client.data() == (1, CONTENT[100:5100])


def test_simple_read_returns_the_bytes(client: Client) -> None:
    client.go("vda", structured=False)
    client.send(request(p.CMD_READ, 9, 4000, 200))
    assert client.receive(16) == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, 9)
    assert client.receive(200) == CONTENT[4000:4200]


def test_pipelined_requests_are_all_answered_in_order(client: Client) -> None:
    client.go("vda")
    count = 3000  # more than fit in one receive, in one sendmsg, and in the buffer of replies
    reads = [(cookie * 37) % (len(CONTENT) - 600) for cookie in range(count)]
    sender = threading.Thread(
        target=client.send, args=(b"".join(request(p.CMD_READ, c, o, 600) for c, o in enumerate(reads)),)
    )
    sender.start()
    for cookie, offset in enumerate(reads):
        assert client.data() == (cookie, CONTENT[offset : offset + 600])
    sender.join()


def test_long_read_comes_in_chunks_and_with_df_in_one(folder: Path) -> None:
    content = bytes(range(251)) * 12000
    with NbdServer({"vda": MemoryDisk(content)}, folder / "l") as server:
        client = Client.connect(server.path)
        client.go("vda")
        client.send(request(p.CMD_READ, 1, 3, len(content) - 3))
        flags, kind, _, payload = client.chunk()
        assert (flags, kind, len(payload)) == (0, p.CHUNK_OFFSET_DATA, CHUNK_DATA_MAX + 8)
        rest = client.data()[1]
        assert payload[8:] + rest == content[3:]
        client.send(request(p.CMD_READ, 2, 3, len(content) - 3, p.CMD_FLAG_DF))
        flags, kind, _, payload = client.chunk()
        assert (flags, kind) == (p.CHUNK_FLAG_DONE, p.CHUNK_OFFSET_DATA)
        assert payload[8:] == content[3:]
        client.close()


@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags", "error"),
    [
        (p.CMD_READ, len(CONTENT) - 1, 2, 0, p.EINVAL),
        (p.CMD_READ, 1 << 63, 512, 0, p.EINVAL),
        (p.CMD_READ, 0, p.REQUEST_MAX + 1, 0, p.EINVAL),
        (p.CMD_READ, 0, 512, 1 << 9, p.EINVAL),
        (p.CMD_BLOCK_STATUS, len(CONTENT), 1, 0, p.EINVAL),
        (p.CMD_BLOCK_STATUS, 0, 0, 0, p.EINVAL),
        (p.CMD_TRIM, 0, 512, 0, p.EPERM),
        (p.CMD_WRITE_ZEROES, 0, 512, p.CMD_FLAG_NO_HOLE, p.EPERM),
        (p.CMD_CACHE, 0, 512, 0, p.EINVAL),
        (77, 0, 512, 0, p.EINVAL),
    ],
)
def test_bad_request_gets_its_error_and_the_connection_goes_on(
    client: Client, kind: int, offset: int, length: int, flags: int, error: int
) -> None:
    client.go("vda")
    client.send(request(kind, 3, offset, length, flags))
    assert client.error() == (3, error)
    client.send(request(p.CMD_READ, 4, 0, 512))
    assert client.data() == (4, CONTENT[:512])


@pytest.mark.parametrize("structured", [True, False])
def test_write_is_refused_and_its_payload_skipped(client: Client, disk: MemoryDisk, structured: bool) -> None:
    client.go("vda", structured=structured)
    client.send(request(p.CMD_WRITE, 5, 0, 200_000) + b"w" * 200_000 + request(p.CMD_FLUSH, 6))
    if structured:
        assert client.error() == (5, p.EPERM)
        assert client.chunk() == (p.CHUNK_FLAG_DONE, p.CHUNK_NONE, 6, b"")
    else:
        assert client.receive(16) == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, p.EPERM, 5)
        assert client.receive(16) == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, 6)
    assert disk.content == CONTENT


def test_block_status_merges_neighbours(client: Client) -> None:
    client.go("vda")
    client.send(request(p.CMD_BLOCK_STATUS, 1, 100, len(CONTENT) - 100))
    _, kind, cookie, payload = client.chunk()
    assert (kind, cookie) == (p.CHUNK_BLOCK_STATUS, 1)
    assert payload == p.U32.pack(p.CONTEXT_ID) + b"".join(
        p.STATUS_EXTENT.pack(length, flags)
        for length, flags in ((4096 - 100, 0), (4096, 3), (1024, 0), (3072, 3))
    )


def test_block_status_with_req_one_returns_one_extent(client: Client) -> None:
    client.go("vda")
    client.send(request(p.CMD_BLOCK_STATUS, 1, 4096, 6000, p.CMD_FLAG_REQ_ONE))
    assert client.chunk()[3] == p.U32.pack(p.CONTEXT_ID) + p.STATUS_EXTENT.pack(4096, 3)


def test_block_status_is_limited_in_extents(folder: Path) -> None:
    content = (b"\1" + bytes(511) + bytes(512)) * (EXTENTS_MAX + 10)
    with NbdServer({"vda": MemoryDisk(content)}, folder / "b") as server:
        client = Client.connect(server.path)
        client.go("vda")
        client.send(request(p.CMD_BLOCK_STATUS, 1, 0, len(content)))
        assert client.chunk()[3][4:] == p.STATUS_EXTENT.pack(512, 0) + (
            p.STATUS_EXTENT.pack(512, 3) + p.STATUS_EXTENT.pack(512, 0)
        ) * (EXTENTS_MAX // 2 - 1) + p.STATUS_EXTENT.pack(512, 3)
        client.close()


def test_block_status_without_negotiated_context_is_invalid(client: Client) -> None:
    client.go("vda", allocation=False)
    client.send(request(p.CMD_BLOCK_STATUS, 1, 0, 512))
    assert client.error() == (1, p.EINVAL)


@pytest.mark.parametrize(
    "failure", [CorruptError("the log is damaged"), OSError(5, "gone"), ZeroDivisionError("a bug")]
)
def test_failing_disk_is_eio_and_the_connection_goes_on(
    client: Client, disk: MemoryDisk, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client.go("vda")
    disk.fail_from, disk.failure = 4096, failure
    client.send(request(p.CMD_READ, 1, 4000, 512) + request(p.CMD_BLOCK_STATUS, 2, 0, 512))
    assert client.error() == (1, p.EIO)
    assert client.error() == (2, p.EIO)
    assert str(failure) in caplog.text
    client.send(request(p.CMD_READ, 3, 0, 512))
    assert client.data() == (3, CONTENT[:512])


def test_read_that_fails_in_its_second_chunk_names_the_offset(folder: Path) -> None:
    disk = MemoryDisk(b"\5" * (CHUNK_DATA_MAX * 2))
    disk.fail_from = CHUNK_DATA_MAX + 1
    with NbdServer({"vda": disk}, folder / "e") as server:
        client = Client.connect(server.path)
        client.go("vda")
        client.send(request(p.CMD_READ, 1, 0, disk.size))
        assert client.chunk()[:2] == (0, p.CHUNK_OFFSET_DATA)
        flags, kind, _, payload = client.chunk()
        assert (flags, kind) == (p.CHUNK_FLAG_DONE, p.CHUNK_ERROR_OFFSET)
        assert payload == p.ERROR_PAYLOAD.pack(p.EIO, 0) + p.U64.pack(CHUNK_DATA_MAX)
        client.close()


def test_simple_read_that_fails_sends_no_data(client: Client, disk: MemoryDisk) -> None:
    client.go("vda", structured=False)
    disk.fail_from = 0
    client.send(request(p.CMD_READ, 1, 0, 512) + request(p.CMD_FLUSH, 2))
    assert client.receive(16) == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, p.EIO, 1)
    assert client.receive(16) == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, 2)


def test_disconnect_is_after_the_answers(client: Client) -> None:
    client.go("vda")
    client.send(request(p.CMD_READ, 1, 0, 512) + request(p.CMD_DISC, 2))
    assert client.data() == (1, CONTENT[:512])
    assert client.ended()


@pytest.mark.parametrize(
    "garbage", [b"\0" * 28, b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n", request(p.CMD_WRITE, 1, 0, (32 << 20) + 1)]
)  # fmt: skip
def test_garbage_in_transmission_ends_only_its_own_connection(server: NbdServer, garbage: bytes) -> None:
    bad, good = Client.connect(server.path), Client.connect(server.path)
    good.go("vda")
    bad.go("vda")
    bad.send(garbage)
    assert bad.ended()
    good.send(request(p.CMD_READ, 1, 0, 512))
    assert good.data() == (1, CONTENT[:512])
    bad.close()
    good.close()


def test_client_that_says_nothing_is_dropped(folder: Path, disk: MemoryDisk) -> None:
    with NbdServer({"vda": disk}, folder / "t", handshake_timeout_s=0.05) as server:
        silent, talker = Client.connect(server.path), Client.connect(server.path)
        talker.go("vda")
        assert silent.receive(18)
        assert silent.ended()
        talker.send(request(p.CMD_READ, 1, 0, 512))  # the limit ends with the handshake
        assert talker.data() == (1, CONTENT[:512])
        silent.close()
        talker.close()


def test_connections_are_limited(folder: Path, disk: MemoryDisk) -> None:
    with NbdServer({"vda": disk}, folder / "c", connections_max=2) as server:
        first, second = Client.connect(server.path), Client.connect(server.path)
        first.go("vda")
        second.go("vda")
        third = Client.connect(server.path)
        assert third.ended()
        first.send(request(p.CMD_DISC, 1))
        assert first.ended()
        again = Client.connect(server.path)
        again.go("vda")
        for client in (first, second, third, again):
            client.close()


def test_close_ends_connections_and_removes_the_socket(folder: Path, disk: MemoryDisk) -> None:
    server = NbdServer({"vda": disk}, folder / "x")
    server.start()
    client = Client.connect(server.path)
    client.go("vda")
    server.close()
    assert client.ended()
    assert list(folder.iterdir()) == []
    assert server.connections == 0
    server.close()
    client.close()


def test_socket_has_the_mode_and_replaces_a_stale_one(folder: Path, disk: MemoryDisk) -> None:
    (folder / "m").write_text("stale")
    with NbdServer({"vda": disk}, folder / "m", mode=0o666) as server:
        status = server.path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o666
        assert [file.name for file in folder.iterdir()] == ["m"]


def test_closing_an_old_server_leaves_the_socket_of_its_successor(folder: Path, disk: MemoryDisk) -> None:
    old, new = NbdServer({"vda": disk}, folder / "r"), NbdServer({"vda": disk}, folder / "r")
    old.start()
    new.start()
    old.close()
    client = Client.connect(folder / "r")
    client.go("vda")
    client.close()
    new.close()


def test_path_that_no_client_could_open_is_refused(folder: Path, disk: MemoryDisk) -> None:
    with pytest.raises(InvalidInputError, match="longer than 107 bytes"):
        NbdServer({"vda": disk}, folder / ("x" * 100))


def test_folder_that_is_missing_is_an_error_with_the_path(folder: Path, disk: MemoryDisk) -> None:
    with pytest.raises(UnavailableError, match=r"cannot listen on .*/none/s"):
        NbdServer({"vda": disk}, folder / "none" / "s").start()
