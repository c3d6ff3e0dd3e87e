"""A snapshot's disk over a real NBD server: what is asked about, answers that are cut, and many small reads."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secondsite.capture import read_ahead
from secondsite.capture.export import ExportDisk
from secondsite.capture.port import PIECE, Extent
from secondsite.errors import UnavailableError
from secondsite.model.ids import Digest
from secondsite.model.units import KIB, MIB
from secondsite.nbd.buffers import Buffer, BufferPool
from secondsite.nbd.server import NbdServer
from secondsite.nbd.transmission import EXTENTS_MAX
from secondsite.ship.delivery import Outgoing, Run
from secondsite.ship.protocol import PartKind
from support.nbd_wire import MemoryDisk

SIZE = 192 * MIB


class Watched(MemoryDisk):
    """Remembers which ranges the status was asked of."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.ranges: list[tuple[int, int]] = []

    def extents(self, offset: int, length: int):
        self.ranges.append((offset, offset + length))
        return super().extents(offset, length)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sse", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@contextmanager
def opened(
    folder: Path, content: MemoryDisk, only: list[tuple[int, int]] | None = None
) -> Iterator[ExportDisk]:
    runs = None if only is None else np.array(only, np.int64).reshape(-1, 2)
    with (
        NbdServer({"vda": content}, folder / "s"),
        closing(ExportDisk(folder / "s", "vda", only=runs)) as disk,
    ):
        yield disk
        disk.finish()


def test_where_nothing_is_marked_the_status_is_not_asked(folder: Path) -> None:
    content = Watched(bytes(MIB))
    with opened(folder, content, only=[]) as disk:
        assert list(disk.changed()) == []
    assert content.ranges == []


def test_the_status_is_asked_around_what_is_marked_and_of_nothing_far_from_it(folder: Path) -> None:
    data = bytearray(SIZE)
    data[0 : 64 * KIB] = b"a" * (64 * KIB)
    data[MIB : MIB + 64 * KIB] = b"b" * (64 * KIB)
    data[100 * MIB : 101 * MIB] = b"unmarked" * (MIB // 8)
    data[190 * MIB : 190 * MIB + 32 * KIB] = b"c" * (32 * KIB)
    content = Watched(bytes(data))
    marked = [(0, 64 * KIB), (MIB, MIB + 128 * KIB), (190 * MIB, 190 * MIB + 64 * KIB)]
    with opened(folder, content, only=marked) as disk:
        assert list(disk.changed()) == [
            Extent(0, 64 * KIB, zero=False),
            Extent(MIB, 64 * KIB, zero=False),
            Extent(MIB + 64 * KIB, 64 * KIB, zero=True),
            Extent(190 * MIB, 32 * KIB, zero=False),
            Extent(190 * MIB + 32 * KIB, 32 * KIB, zero=True),
        ]
    assert max(end for _, end in content.ranges if end < 100 * MIB) == MIB + 128 * KIB
    assert min(start for start, _ in content.ranges if start > 100 * MIB) == 190 * MIB


def test_an_answer_that_is_cut_is_asked_on(folder: Path) -> None:
    # More extents than the server gives in one answer, several times over.
    count = 3 * EXTENTS_MAX + 7
    content = (b"\1" * 512 + bytes(512)) * count
    with opened(folder, MemoryDisk(content)) as disk:
        found = list(disk.changed())
    assert len(found) == 2 * count
    assert found == [Extent(at * 512, 512, zero=at % 2 == 1) for at in range(2 * count)]


@pytest.mark.parametrize("seed", range(3))
def test_reads_of_all_sizes_come_in_order_with_the_right_bytes(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(24 * MIB)
    edges = sorted(rng.sample(range(0, len(content), 512), 400))
    ranges = [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    with opened(folder, MemoryDisk(content)) as disk:
        seen = bytearray()
        for offset, view in disk.read(ranges):
            assert view == content[offset : offset + len(view)]
            seen += view
    assert seen == b"".join(content[start : start + length] for start, length in ranges)


def readers() -> list[threading.Thread]:
    """Threads that read ahead."""
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("step", [PIECE, 4 * KIB])
def test_a_slow_reader_keeps_its_bytes_and_is_not_run_away_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What is looked at is not read over, and no more than a few buffers are filled ahead of it."""
    buffers = _Counted()
    monkeypatch.setattr(read_ahead, "BUFFERS", buffers)
    content = random.Random(1).randbytes(24 * MIB)
    ranges = [(offset, step) for offset in range(0, len(content), 3 * step)][:60]
    with opened(folder, MemoryDisk(content)) as disk:
        for offset, view in disk.read(ranges):
            time.sleep(0.01)  # long enough for all that may be read ahead
            assert view == content[offset : offset + len(view)]
        assert readers() == []
    assert 1 < buffers.most <= read_ahead.READS
    assert buffers.most <= -(-read_ahead.READ_AHEAD // step)
    assert buffers.out == 0


@pytest.mark.parametrize("looked_at", [1, 5, 30])
def test_a_reader_that_is_left_ends_its_thread_and_gives_back_its_buffers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, looked_at: int
) -> None:
    buffers = _Counted()
    monkeypatch.setattr(read_ahead, "BUFFERS", buffers)
    with opened(folder, MemoryDisk(b"x" * (64 * MIB))) as disk:
        reading = disk.read([(0, disk.size)])
        for _ in range(looked_at):
            next(reading)
        assert len(readers()) == 1
        reading.close()
        assert readers() == []
        assert buffers.out == 0
        # The connection is as good as before.
        assert sum(len(view) for _, view in disk.read([(0, disk.size)])) == disk.size


def test_a_reader_that_nobody_looks_at_lets_the_snapshot_end(folder: Path) -> None:
    """QEMU must not be stopped while it writes answers: all of them are taken, also when nobody wants them any more."""
    with opened(folder, MemoryDisk(b"x" * (64 * MIB))) as disk:
        reading = disk.read([(0, disk.size)])
        next(reading)
        begun = time.monotonic()
        disk.finish()
        disk.close()
        assert time.monotonic() - begun < 2
        with pytest.raises(UnavailableError):
            for _ in reading:
                pass
        assert readers() == []


def test_what_comes_before_an_error_is_shown_and_then_the_error(folder: Path) -> None:
    content = random.Random(1).randbytes(32 * MIB)
    broken, seen = MemoryDisk(content), bytearray()
    broken.fail_from = 20 * MIB

    def look(disk: ExportDisk) -> None:
        for _, view in disk.read([(0, disk.size)]):
            seen.extend(view)

    with opened(folder, broken) as disk:
        with pytest.raises(UnavailableError, match="reading"):
            look(disk)
        assert readers() == []
    assert seen == content[: 20 * MIB]


def test_after_the_end_nothing_new_is_asked(folder: Path) -> None:
    with opened(folder, MemoryDisk(bytes(8 * MIB))) as disk:
        reading = disk.read([(0, 8 * MIB)])
        next(reading)
        disk.finish()
        with pytest.raises(UnavailableError):
            list(disk.changed())
        reading.close()


def test_a_bitmap_that_is_not_offered_is_refused_at_once(folder: Path) -> None:
    with (
        NbdServer({"vda": MemoryDisk(bytes(MIB))}, folder / "s"),
        pytest.raises(UnavailableError, match="does not offer"),
    ):
        ExportDisk(folder / "s", "vda", bitmap="missing")


class _Counted(BufferPool):
    """Counts what is with a reader, or with libnbd."""

    def __init__(self) -> None:
        super().__init__(PIECE)
        self.most = self.out = 0

    def take(self, share: Callable[[memoryview], Any]) -> Buffer:
        self.out += 1
        self.most = max(self.most, self.out)
        return super().take(share)

    def give(self, buffer: Buffer) -> None:
        self.out -= 1
        super().give(buffer)


def test_a_transfer_that_breaks_gives_back_the_buffers_of_the_reads_under_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer stayed where it was until its snapshot had been closed: each cycle of a line that broke lost up to 8 MiB for good."""
    buffers = _Counted()
    monkeypatch.setattr(read_ahead, "BUFFERS", buffers)

    def deliver(part: Outgoing) -> None:
        raise UnavailableError("the line broke")

    with opened(folder, MemoryDisk(b"x" * (64 * MIB))) as disk:

        def parts() -> Iterator[Outgoing]:
            for number, _ in enumerate(disk.read([(0, disk.size)])):
                yield Outgoing(Digest(f"{number:064x}"), PartKind.LOG, Path("/nowhere"), 1)

        def cycle() -> None:
            try:
                Run(None, threading.Event()).through(parts(), 2, deliver)
            finally:  # what is raised holds the producer by its traceback while the snapshot is closed
                disk.finish()
                disk.close()

        with pytest.raises(UnavailableError, match="the line broke"):
            cycle()
    assert buffers.most > 1
    assert buffers.out == 0
