"""What reads and writes through libnbd take of memory: its binding keeps every buffer that it was handed, for ever."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from secondsite.capture import read_ahead
from secondsite.capture.export import ExportDisk
from secondsite.model.units import KIB, MIB
from secondsite.nbd import client
from secondsite.nbd.buffers import Buffer
from secondsite.nbd.image import ImageBase, ImageServer

SIZE = 24 * MIB


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture
def server(tmp_path: Path, content: bytes, short_path: Path) -> Iterator[Path]:
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    with ImageServer(image, "qcow2", short_path / "s", True):
        yield short_path / "s"


def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the buffers that are made from here on, by their lengths."""
    found: list[int] = []
    begin = Buffer.__init__

    def counted(self: Buffer, size: int, share: object) -> None:
        found.append(size)
        begin(self, size, share)  # type: ignore[arg-type]

    monkeypatch.setattr(Buffer, "__init__", counted)
    return found


def read_all(socket: Path) -> bytes:
    disk = ExportDisk(socket, "")
    try:
        return b"".join(bytes(view) for _, view in disk.read([(0, disk.size)]))
    finally:
        disk.finish()
        disk.close()


def test_one_cycle_after_the_other_reads_with_the_same_buffers(
    server: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers = made(monkeypatch)
    for _ in range(4):
        assert read_all(server) == content
    assert len(buffers) <= read_ahead.READS


def test_a_reader_that_is_abandoned_gives_its_buffers_back_and_two_never_share_one(
    server: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers = made(monkeypatch)
    for _ in range(3):
        one, other = ExportDisk(server, ""), ExportDisk(server, "")
        reading = one.read([(0, SIZE)])
        next(reading)
        beside = other.read([(MIB, SIZE - MIB)])
        offset, view = next(beside)
        assert bytes(view) == content[offset : offset + len(view)]
        for at, piece in reading:
            assert bytes(piece) == content[at : at + len(piece)]
            if at > 9 * MIB:
                break
        reading.close()
        assert bytes(view) == content[offset : offset + len(view)]
        beside.close()
        for disk in (one, other):
            disk.finish()
            disk.close()
    assert len(buffers) <= 2 * read_ahead.READS


def test_an_image_is_read_and_written_with_the_same_few_buffers(
    server: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers = made(monkeypatch)
    base = ImageBase(server, writable=True)
    try:
        data = bytearray(content)
        for offset, length in ((0, 3 * MIB), (5 * MIB + 512, 700 * KIB), (SIZE - 4 * KIB, 4 * KIB)):
            piece = random.Random(offset).randbytes(length)
            data[offset : offset + length] = piece
            base.write(offset, memoryview(piece))
        found = bytearray(SIZE)
        base.readinto(0, memoryview(found))
        assert found == data
        part = bytearray(MIB + 512)
        base.readinto(7 * MIB - 1024, memoryview(part))
        assert part == data[7 * MIB - 1024 : 8 * MIB - 512]
    finally:
        base.close()
    assert len(buffers) <= client.DEPTH


def test_what_libnbd_is_handed_for_a_length_is_always_the_same_object() -> None:
    """Else the pool would help nothing: what is kept for ever is the view, with the memory behind it."""
    buffer = Buffer(MIB, nbd.Buffer.from_buffer)
    assert buffer.part(4096)[1] is buffer.part(4096)[1]
    assert buffer.part(4096)[0] is buffer.part(4096)[0]
