"""The server with the clients that people use: nbdinfo, nbdcopy, qemu-img and libnbd; many at once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from secondsite.nbd.image import ImageBase
from secondsite.nbd.server import NbdServer
from support.nbd_wire import Client, MemoryDisk

pytestmark = pytest.mark.integration

MIB = 1 << 20


def patchy(size: int, seed: int) -> bytes:
    """Data and holes of random lengths, in multiples of 4 KiB."""
    random_ = random.Random(seed)
    content = bytearray(size)
    at = 0
    while at < size:
        length = min(random_.choice([1, 3, 16, 200]) * 4096, size - at)
        if random_.random() < 0.5:
            content[at : at + length] = random_.randbytes(length)
        at += length
    return bytes(content)


CONTENTS = {"vda": patchy(24 * MIB, 1), "vdb": patchy(5 * MIB + 512, 2)}


@pytest.fixture
def server(short_path: Path) -> Iterator[NbdServer]:
    disks = {name: MemoryDisk(content, 4096) for name, content in CONTENTS.items()}
    with NbdServer(disks, short_path / "s") as running:
        yield running


def uri(server: NbdServer, name: str) -> str:
    return f"nbd+unix:///{name}?socket={server.path}"


def run(*arguments: object) -> str:
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("options", [[], ["--connections=1"], ["--synchronous"], ["--request-size=33554432"]])
def test_nbdcopy_copies_all(server: NbdServer, short_path: Path, name: str, options: list[str]) -> None:
    run("nbdcopy", *options, uri(server, name), short_path / "copy")
    assert (short_path / "copy").read_bytes() == CONTENTS[name]


@pytest.mark.parametrize("name", CONTENTS)
def test_qemu_img_converts_and_compares(server: NbdServer, short_path: Path, name: str) -> None:
    copy = short_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri(server, name), copy)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri(server, name), copy)
    flat = short_path / "flat"
    run("qemu-img", "convert", "-O", "raw", copy, flat)
    assert flat.read_bytes()[: len(CONTENTS[name])] == CONTENTS[name]


def test_overlay_on_a_view_is_how_a_machine_boots_from_it(server: NbdServer, short_path: Path) -> None:
    overlay, flat = short_path / "overlay.qcow2", short_path / "flat"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", uri(server, "vda"), overlay, 24 * MIB)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 5000k 64k", overlay)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, flat)
    expected = bytearray(CONTENTS["vda"])
    expected[5000 * 1024 : 5064 * 1024] = b"\x5a" * 65536
    assert flat.read_bytes() == expected
    run("qemu-img", "rebase", "-b", "", overlay)  # what blockPull does, offline: the overlay stands alone
    server.close()
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, flat)
    assert flat.read_bytes() == expected


def test_nbdinfo_lists_the_exports(server: NbdServer) -> None:
    listed = json.loads(run("nbdinfo", "--json", "--list", f"nbd+unix:///?socket={server.path}"))
    found = {export["export-name"]: export for export in listed["exports"]}
    assert {name: export["export-size"] for name, export in found.items()} == {
        name: len(content) for name, content in CONTENTS.items()
    }
    for export in found.values():
        assert export["contexts"] == ["base:allocation"]
        assert export["is_read_only"]
        assert export["can_multi_conn"]
        assert export["can_df"]


@pytest.mark.parametrize("name", CONTENTS)
def test_map_is_that_of_the_disk(server: NbdServer, name: str) -> None:
    content = CONTENTS[name]
    expected: list[list[int]] = []
    for at in range(0, len(content), 4096):
        block = content[at : at + 4096]
        state = 0 if any(block) else 3
        if expected and expected[-1][2] == state:
            expected[-1][1] += len(block)
        else:
            expected.append([at, len(block), state])
    found = json.loads(run("nbdinfo", "--json", "--map", uri(server, name)))
    assert [[extent["offset"], extent["length"], extent["type"]] for extent in found] == expected


def test_map_seen_by_qemu_is_that_of_nbdinfo(server: NbdServer) -> None:
    seen = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", uri(server, "vda")))
    listed = json.loads(run("nbdinfo", "--json", "--map", uri(server, "vda")))
    assert [(e["start"], e["length"], e["data"]) for e in seen] == [
        (e["offset"], e["length"], e["type"] == 0) for e in listed
    ]


def test_many_connections_read_at_the_same_time(server: NbdServer) -> None:
    failures: list[str] = []

    def read(seed: int) -> None:
        random_ = random.Random(seed)
        name = random_.choice(list(CONTENTS))
        handle = nbd.NBD()
        handle.set_export_name(name)
        handle.connect_unix(str(server.path))
        for _ in range(40):
            length = random_.choice([1, 512, 4096, 100_000, 2 * MIB])
            offset = random_.randrange(0, len(CONTENTS[name]) - length)
            if handle.pread(length, offset) != CONTENTS[name][offset : offset + length]:
                failures.append(f"{name} at {offset}, {length}")
        handle.shutdown()

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(12)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert failures == []


def test_deep_queue_of_mixed_requests_is_answered_right(server: NbdServer) -> None:
    content = CONTENTS["vda"]
    handle = nbd.NBD()
    handle.set_export_name("vda")
    handle.connect_unix(str(server.path))
    random_ = random.Random(3)
    flying: list[tuple[int, int, nbd.Buffer]] = []

    def chunk(_data: bytes, _offset: int, status: int, _error: object) -> int:
        assert status == nbd.READ_DATA
        return 0

    for _ in range(300):
        length = random_.choice([512, 4096, 65536, 3 * MIB // 2])
        offset = random_.randrange(0, len(content) - length) // 512 * 512
        buffer = nbd.Buffer(length)
        if random_.random() < 0.5:
            cookie = handle.aio_pread(buffer, offset)
        else:
            cookie = handle.aio_pread_structured(buffer, offset, chunk, flags=nbd.CMD_FLAG_DF)
        flying.append((cookie, offset, buffer))
        while len(flying) >= 32:
            cookie, offset, buffer = flying.pop(0)
            while not handle.aio_command_completed(cookie):
                handle.poll(20_000)
            assert bytes(buffer.to_buffer()) == content[offset : offset + len(buffer)]
    for cookie, offset, buffer in flying:
        while not handle.aio_command_completed(cookie):
            handle.poll(20_000)
        assert bytes(buffer.to_buffer()) == content[offset : offset + len(buffer)]


def test_writes_are_refused_by_the_server_itself(server: NbdServer) -> None:
    handle = nbd.NBD()
    handle.set_export_name("vda")
    handle.set_strict_mode(0)  # so that libnbd sends what it knows to be refused
    handle.connect_unix(str(server.path))
    for attempt in (
        lambda: handle.pwrite(b"x" * 4096, 0),
        lambda: handle.trim(4096, 0),
        lambda: handle.zero(4096, 0),
    ):
        with pytest.raises(nbd.Error) as refused:
            attempt()
        assert refused.value.errno == "EPERM"
    assert handle.pread(4096, 0) == CONTENTS["vda"][:4096]


def test_image_base_reads_a_view_and_survives_its_restart(server: NbdServer) -> None:
    with ImageBase(server.path, export="vdb") as base:
        buffer = bytearray(base.size)
        base.readinto(0, memoryview(buffer))
        assert buffer == CONTENTS["vdb"]
        data = bytearray(base.size)
        for offset, length in base.data_extents(0, base.size):
            data[offset : offset + length] = CONTENTS["vdb"][offset : offset + length]
        assert data == CONTENTS["vdb"]
        with NbdServer({"vdb": MemoryDisk(CONTENTS["vdb"])}, server.path):
            server.close()
            base.readinto(0, memoryview(buffer))
            assert buffer == CONTENTS["vdb"]


def test_clients_that_vanish_leave_nothing_open(server: NbdServer) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        client = Client.connect(server.path)
        client.go("vda")
        client.close()
    last = Client.connect(server.path)
    last.go("vda")
    last.close()
    server.close()  # waits for all threads
    assert server.connections == 0
    assert len(os.listdir("/proc/self/fd")) < before  # noqa: PTH208  the listener is gone, too
