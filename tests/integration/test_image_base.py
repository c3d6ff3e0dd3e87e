"""Disk images through a real qemu-nbd: contents, holes, bitmaps, restarts, and one server for several processes."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError
from secondsite.journal.base import BaseSpec
from secondsite.nbd.image import ImageBase, ImageServer, base_opener, shared_image, stop_shared
from secondsite.nbd.qemu_nbd import answers
from secondsite.processes import ProcessRef

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZE = 16 * MIB


def qemu_img(*arguments: object) -> str:
    return subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True, timeout=60
    ).stdout


@pytest.fixture
def image(short_path: Path) -> Path:
    path = short_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    return path


@pytest.fixture
def server(image: Path) -> Iterator[ImageServer]:
    with ImageServer(image, "qcow2", image.with_name("s"), writable=True) as running:
        yield running


def content(base: ImageBase) -> bytes:
    buffer = bytearray(base.size)
    base.readinto(0, memoryview(buffer))
    return bytes(buffer)


def kill(ref: ProcessRef | None) -> None:
    """SIGKILL and wait until it is gone."""
    assert ref is not None
    pidfd = os.pidfd_open(ref.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)


# -- reading and writing ---------------------------------------------------------------------------------


def test_base_reads_back_any_history_of_writes_and_zeros(server: ImageServer) -> None:
    random_ = random.Random(1)
    model = bytearray(SIZE)
    with ImageBase(server.socket, writable=True) as base:
        assert base.size == SIZE
        assert list(base.data_extents(0, SIZE)) == []
        for _ in range(60):
            length = random_.choice([512, 4096, 70_144, 3 * MIB])
            offset = random_.randrange(0, SIZE - length) // 512 * 512
            if random_.random() < 0.3:
                base.zero(offset, length)
                model[offset : offset + length] = bytes(length)
            else:
                data = random_.randbytes(length)
                base.write(offset, data)
                model[offset : offset + length] = data
        base.sync()
        assert content(base) == model
        covered = bytearray(SIZE)
        for offset, length in base.data_extents(0, SIZE):
            covered[offset : offset + length] = b"\1" * length
        assert not any(model[at] and not covered[at] for at in range(SIZE))
    server.stop()
    qemu_img("convert", "-O", "raw", server.path, server.path.with_suffix(".raw"))
    assert server.path.with_suffix(".raw").read_bytes() == model


def test_extents_are_merged_clipped_and_cover_the_range(server: ImageServer) -> None:
    with ImageBase(server.socket, writable=True) as base:
        base.write(MIB, b"x" * MIB)
        base.write(2 * MIB, b"y" * MIB)
        base.write(8 * MIB, memoryview(b"z" * 65536))
        assert list(base.extents(512, SIZE - 512)) == [
            (512, MIB - 512, True),
            (MIB, 2 * MIB, False),
            (3 * MIB, 5 * MIB, True),
            (8 * MIB, 65536, False),
            (8 * MIB + 65536, 8 * MIB - 65536, True),
        ]
        assert list(base.data_extents(MIB + 512, 1024)) == [(MIB + 512, 1024)]
        assert list(base.extents(0, 0)) == []


def test_zero_gives_space_back(server: ImageServer) -> None:
    with ImageBase(server.socket, writable=True) as base:
        base.write(0, b"x" * 8 * MIB)
        base.sync()
        before = server.path.stat().st_blocks
        base.zero(0, SIZE)
        base.sync()
        assert list(base.data_extents(0, SIZE)) == []
        assert server.path.stat().st_blocks * 512 < before * 512 - 7 * MIB


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 512), (-512, 512), (SIZE - 511, 512)])
def test_access_outside_the_disk_is_refused(server: ImageServer, offset: int, length: int) -> None:
    with ImageBase(server.socket, writable=True) as base:
        for call in (
            lambda: base.readinto(offset, memoryview(bytearray(length))),
            lambda: base.write(offset, bytes(length)),
            lambda: base.zero(offset, length),
            lambda: list(base.data_extents(offset, length)),
        ):
            with pytest.raises(InvalidInputError):
                call()


def test_base_that_is_read_only_refuses_writes(server: ImageServer) -> None:
    with ImageBase(server.socket) as base:
        with pytest.raises(ConflictError):
            base.write(0, bytes(512))
        with pytest.raises(ConflictError):
            base.zero(0, 512)
        base.sync()


def test_threads_read_while_one_writes(server: ImageServer) -> None:
    failures: list[str] = []
    with ImageBase(server.socket, writable=True) as base:
        base.write(0, b"\x55" * MIB)

        def read() -> None:
            buffer = bytearray(MIB)
            for _ in range(20):
                base.readinto(0, memoryview(buffer))
                if buffer.count(0x55) != MIB:
                    failures.append("a reader got other bytes")

        readers = [threading.Thread(target=read) for _ in range(6)]
        for reader in readers:
            reader.start()
        for at in range(MIB, 9 * MIB, MIB):
            base.write(at, b"\x66" * MIB)
        for reader in readers:
            reader.join()
        assert failures == []
        assert content(base)[: 9 * MIB] == b"\x55" * MIB + b"\x66" * 8 * MIB


# -- the server --------------------------------------------------------------------------------------------


def test_image_whose_name_looks_like_a_protocol_is_opened(short_path: Path) -> None:
    path = short_path / "nbd:a,b=c.raw"
    path.write_bytes(b"\x11" * MIB)
    with (
        ImageServer(path, "raw", short_path / "s", writable=False) as server,
        ImageBase(server.socket) as base,
    ):
        assert content(base) == b"\x11" * MIB


def test_socket_with_a_long_path_works(image: Path, short_path: Path) -> None:
    folder = short_path / ("x" * 100) / ("y" * 100)
    with ImageServer(image, "qcow2", folder / "s", writable=True) as server:
        with ImageBase(server.socket, writable=True) as base:
            base.write(0, b"x" * 512)
            base.sync()
        assert answers(server.socket)
    assert list(folder.iterdir()) == []


def test_bitmap_is_exported(image: Path) -> None:
    qemu_img("bitmap", "--add", image, "point7")
    with (
        ImageServer(image, "qcow2", image.with_name("w"), writable=True) as server,
        ImageBase(server.socket, writable=True) as base,
    ):
        base.write(3 * MIB, b"d" * 65536)
        base.sync()
    with ImageServer(image, "qcow2", image.with_name("b"), writable=False, bitmap="point7") as server:
        dirty = json.loads(
            subprocess.run(
                ["nbdinfo", "--json", "--map=qemu:dirty-bitmap:point7", f"nbd+unix:///?socket={server.socket}"],
                check=True, capture_output=True, timeout=60,
            ).stdout
        )  # fmt: skip
        assert [(e["offset"], e["length"]) for e in dirty if e["type"]] == [(3 * MIB, 65536)]


def test_start_reports_what_qemu_nbd_said(short_path: Path) -> None:
    path = short_path / "not.qcow2"
    path.write_bytes(b"no image at all" * 100)
    server = ImageServer(path, "qcow2", short_path / "s", writable=True)
    with pytest.raises(UnavailableError, match="not in qcow2 format"):
        server.start()
    assert server.process is None
    assert not server.socket.exists()


def test_missing_bitmap_is_reported(image: Path) -> None:
    with pytest.raises(UnavailableError, match="'none' is not found"):
        ImageServer(image, "qcow2", image.with_name("s"), writable=False, bitmap="none").start()


def test_image_that_is_missing_is_not_found(short_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ImageServer(short_path / "none", "raw", short_path / "s", writable=True).start()


def test_unknown_format_is_refused(short_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        ImageServer(short_path / "none", "raw,file.driver=nbd", short_path / "s", writable=True)


def test_second_writer_is_a_conflict_and_the_first_goes_on(server: ImageServer) -> None:
    with pytest.raises(ConflictError, match="open elsewhere"):
        ImageServer(server.path, "qcow2", server.socket.with_name("t"), writable=True).start()
    with ImageBase(server.socket, writable=True) as base:
        base.write(0, b"x" * 512)


def test_stop_writes_back_and_leaves_only_the_image(image: Path) -> None:
    server = ImageServer(image, "qcow2", image.with_name("s"), writable=True)
    server.start()
    base = ImageBase(server.socket, writable=True)
    base.write(MIB, b"k" * 4096)  # never synced
    server.stop()
    server.stop()
    base._reconnect_timeout_s = 0.1
    assert [path.name for path in image.parent.iterdir()] == [image.name]
    qemu_img("convert", "-O", "raw", image, image.with_suffix(".raw"))
    assert image.with_suffix(".raw").read_bytes()[MIB : MIB + 4096] == b"k" * 4096
    with pytest.raises(UnavailableError):
        base.readinto(0, memoryview(bytearray(512)))
    base.close()


# -- restarts ----------------------------------------------------------------------------------------------


def test_base_finds_a_restarted_server_again(server: ImageServer) -> None:
    with ImageBase(server.socket, writable=True) as base:
        base.write(0, b"a" * 512)
        base.sync()
        server.stop()
        server.start()
        assert content(base)[:512] == b"a" * 512
        base.write(512, b"b" * 512)
        base.sync()  # all that was written before the restart had been synced: nothing is in doubt
        assert content(base)[:1024] == b"a" * 512 + b"b" * 512


def test_sync_fails_once_when_unsynced_writes_may_be_lost(server: ImageServer) -> None:
    with ImageBase(server.socket, writable=True) as base:
        base.write(0, b"a" * 512)
        kill(server.process)
        server.start()
        base.write(512, b"b" * 512)
        with pytest.raises(UnavailableError, match="before it had made the writes durable"):
            base.sync()
        base.write(0, b"a" * 512 + b"b" * 512)
        base.sync()
        assert content(base)[:1024] == b"a" * 512 + b"b" * 512


def test_sync_notices_by_itself_that_the_server_was_killed(server: ImageServer) -> None:
    with ImageBase(server.socket, writable=True) as base:
        base.write(0, b"a" * 512)
        kill(server.process)
        server.start()
        with pytest.raises(UnavailableError, match="before it had made the writes durable"):
            base.sync()


def test_wait_for_a_server_that_stays_away_is_bounded(server: ImageServer) -> None:
    with ImageBase(server.socket, writable=True) as base:
        patient_s, base._reconnect_timeout_s = base._reconnect_timeout_s, 0.2
        server.stop()
        with pytest.raises(UnavailableError):
            base.readinto(0, memoryview(bytearray(512)))
        with pytest.raises(UnavailableError):
            base.write(0, bytes(512))
        server.start()
        base._reconnect_timeout_s = patient_s
        base.readinto(0, memoryview(bytearray(512)))


# -- one server for all ------------------------------------------------------------------------------------

CLIENT = """
import sys
from pathlib import Path
from secondsite.nbd.image import shared_image
base = shared_image(Path(sys.argv[1]), "qcow2", Path(sys.argv[2]), sys.argv[3] == "write")
if sys.argv[3] == "write":
    base.write(int(sys.argv[4]), bytes([int(sys.argv[5])]) * 512)
    base.sync()
buffer = bytearray(512)
base.readinto(int(sys.argv[4]), memoryview(buffer))
print(buffer[0])
"""


@pytest.fixture
def run_dir(image: Path) -> Iterator[Path]:
    folder = image.with_name("run")
    yield folder
    stop_shared(image, folder)
    assert {path.suffix for path in folder.iterdir()} <= {".lock"}


def pid_of_server(run_dir: Path) -> int:
    (pid_file,) = run_dir.glob("*.pid")
    return int(json.loads(pid_file.read_bytes())["pid"])


def test_two_processes_write_through_one_server(image: Path, run_dir: Path) -> None:
    def other(mode: str, offset: int, byte: int) -> subprocess.Popen[str]:
        arguments = [str(image), str(run_dir), mode, str(offset), str(byte)]
        return subprocess.Popen([sys.executable, "-c", CLIENT, *arguments], stdout=subprocess.PIPE, text=True)

    together = [other("write", 0, 65), other("write", 512, 66), other("read", 4096, 0)]
    said = [process.communicate(timeout=60)[0].strip() for process in together]
    assert said == ["65", "66", "0"]
    # The server outlives those who started it, and is the one that we get, too.
    before = pid_of_server(run_dir)
    with shared_image(image, "qcow2", run_dir, writable=True) as base:
        assert content(base)[:1024] == b"A" * 512 + b"B" * 512
    assert pid_of_server(run_dir) == before


def test_reader_survives_the_change_to_a_writable_server(image: Path, run_dir: Path) -> None:
    with shared_image(image, "qcow2", run_dir, writable=False) as reader:
        assert content(reader)[:4] == bytes(4)
        with shared_image(image, "qcow2", run_dir, writable=True) as writer:
            writer.write(0, b"new!" * 128)
            assert content(reader)[:4] == b"new!"


def test_server_that_was_killed_comes_back_for_whoever_needs_it(image: Path, run_dir: Path) -> None:
    with shared_image(image, "qcow2", run_dir, writable=True) as base:
        base.write(0, b"kept" * 128)
        base.sync()
        os.kill(pid_of_server(run_dir), signal.SIGKILL)
        assert content(base)[:4] == b"kept"
        base.write(0, b"next" * 128)
        base.sync()


def test_server_that_was_stopped_stays_stopped(image: Path, run_dir: Path) -> None:
    base = shared_image(image, "qcow2", run_dir, writable=True)
    base._reconnect_timeout_s = 0.2
    stop_shared(image, run_dir)
    with pytest.raises(UnavailableError):
        base.readinto(0, memoryview(bytearray(512)))
    base.close()
    with ImageServer(image, "qcow2", image.with_name("machine"), writable=True):
        pass  # the image is free for somebody else


def test_image_that_was_replaced_is_served_anew(image: Path, run_dir: Path) -> None:
    with shared_image(image, "qcow2", run_dir, writable=True) as base:
        base.write(0, b"old!" * 128)
        base.sync()
    other = image.with_name("other.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", other, SIZE)
    other.replace(image)
    with shared_image(image, "qcow2", run_dir, writable=True) as base:
        assert content(base)[:4] == bytes(4)


def test_image_in_use_by_a_machine_is_a_conflict_and_leaves_no_trace(image: Path, run_dir: Path) -> None:
    with ImageServer(image, "qcow2", image.with_name("machine"), writable=True), pytest.raises(ConflictError):
        shared_image(image, "qcow2", run_dir, writable=True)
    assert {path.suffix for path in run_dir.iterdir()} <= {".lock", ".log"}


def test_stop_of_what_was_never_started_does_nothing(image: Path, run_dir: Path) -> None:
    stop_shared(image, run_dir)


def test_bases_of_a_journal_are_opened_by_kind(image: Path, run_dir: Path, short_path: Path) -> None:
    raw = short_path / "vdb.raw"
    raw.write_bytes(b"r" * 4096)
    opened = base_opener(run_dir)
    for spec, first in (
        (BaseSpec("raw", raw, "raw", 4096), b"r"),
        (BaseSpec("image", image, "qcow2", SIZE), b"\0"),
    ):
        base = opened(spec, True)
        buffer = bytearray(1)
        base.readinto(0, memoryview(buffer))
        assert buffer == first
        base.close()
        base.close()
