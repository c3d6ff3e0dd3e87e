"""What an image base does when the server fails requests, has no space, or stops moving."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from secondsite.errors import ConflictError, CorruptError, NoSpaceError, UnavailableError
from secondsite.journal.base import BaseSpec
from secondsite.nbd import client
from secondsite.nbd.image import ImageBase, base_opener, stop_shared
from secondsite.nbd.qemu_nbd import ImageServer, answers
from secondsite.nbd.server import NbdServer
from secondsite.processes import spawn, terminate, wait_ready
from support.nbd_wire import MemoryDisk

pytestmark = [pytest.mark.integration, pytest.mark.fault]

MIB = 1 << 20


class StuckDisk(MemoryDisk):
    """Reads wait until `go`."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._going = threading.Event()
        self.go = self._going.set

    def readinto(self, offset: int, buffer: memoryview) -> None:
        assert self._going.wait(60)
        super().readinto(offset, buffer)


def test_failed_read_is_reported_and_the_connection_goes_on(short_path: Path) -> None:
    disk = MemoryDisk(b"\x42" * 24 * MIB, 4096)
    with NbdServer({"vda": disk}, short_path / "s") as server, ImageBase(server.path, export="vda") as base:
        disk.fail_from = 5 * MIB  # some of the pieces in flight succeed, others fail
        buffer = bytearray(disk.size)
        with pytest.raises(UnavailableError, match="read at 0"):
            base.readinto(0, memoryview(buffer))
        with pytest.raises(UnavailableError, match="block status at 0"):
            list(base.data_extents(0, disk.size))
        disk.fail_from = None
        base.readinto(0, memoryview(buffer))
        assert buffer == disk.content
        assert server.connections == 1


def test_write_to_a_read_only_server_is_a_conflict(short_path: Path) -> None:
    disk = MemoryDisk(bytes(MIB))
    with (
        NbdServer({"vda": disk}, short_path / "s") as server,
        ImageBase(server.path, export="vda", writable=True) as base,
    ):
        with pytest.raises(ConflictError, match="write at 0"):
            base.write(0, bytes(512))
        base.readinto(0, memoryview(bytearray(512)))


def test_full_file_system_is_no_space(short_path: Path) -> None:
    image = short_path / "disk.raw"
    image.write_bytes(bytes(MIB))
    options = (
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.inject-error.0.event=pwritev,"
        f"file.inject-error.0.errno=28,file.inject-error.0.iotype=write,file.image.filename={image}"
    )
    log = short_path / "log"
    ref = spawn(
        [
            "qemu-nbd",
            "--persistent",
            "--socket",
            str(short_path / "s"),
            "--shared=0",
            "--image-opts",
            options,
        ],
        pid_file=short_path / "pid",
        log_file=log,
    )
    try:
        wait_ready(lambda: answers(short_path / "s"), ref=ref, what="qemu-nbd", log_file=log, timeout_s=20)
        with ImageBase(short_path / "s", writable=True) as base:
            with pytest.raises(NoSpaceError):
                base.write(0, b"x" * 4096)
            base.readinto(0, memoryview(bytearray(512)))
    finally:
        terminate(ref, 20)


def test_server_that_never_greets_is_given_up(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(short_path / "s"))
        silent.listen()
        assert not answers(short_path / "s", 0.05)
        with pytest.raises(UnavailableError, match="does not answer"):
            ImageBase(short_path / "s", reconnect_timeout_s=0.1)


def test_server_that_stops_moving_is_given_up(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STALL_TIMEOUT_S", 0.1)
    disk = StuckDisk(b"\x42" * MIB)
    with NbdServer({"": disk}, short_path / "s") as server:
        with ImageBase(server.path) as base:
            base._reconnect_timeout_s = 0.3
            with pytest.raises(UnavailableError):
                base.readinto(0, memoryview(bytearray(512)))
        disk.go()


def test_damaged_state_file_is_replaced(short_path: Path) -> None:
    image, run = short_path / "disk.raw", short_path / "run"
    image.write_bytes(b"r" * MIB)
    opened = base_opener(run)
    spec = BaseSpec("image", image, "raw", MIB)
    opened(spec, False).close()
    (state,) = run.glob("*.json")
    state.write_bytes(b"{")
    opened(spec, False).close()
    assert json.loads(state.read_bytes())["path"] == str(image)
    stop_shared(image, run)


def test_base_of_another_size_is_corrupt(short_path: Path) -> None:
    image, run = short_path / "disk.raw", short_path / "run"
    image.write_bytes(bytes(MIB))
    with pytest.raises(CorruptError, match="1048576 bytes instead of 2097152"):
        base_opener(run)(BaseSpec("image", image, "raw", 2 * MIB), False)
    stop_shared(image, run)


def test_start_over_a_running_server_is_refused_and_leaves_it_running(short_path: Path) -> None:
    image = short_path / "disk.raw"
    image.write_bytes(bytes(MIB))
    with ImageServer(image, "raw", short_path / "s", writable=False) as server:
        with pytest.raises(ConflictError, match="still runs"):
            ImageServer(image, "raw", short_path / "s", writable=False).start()
        assert answers(server.socket)
