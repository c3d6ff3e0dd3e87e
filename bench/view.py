"""How fast a view is read: our server over a journal beside qemu-nbd over a flat file with the same bytes.

Prints, from one run on one machine, a table of both and their ratio: sequential reads (nbdcopy to null:) and
random 4 KiB reads at queue depths 1 and 16 (fio if it is installed, else a loop over libnbd). Everything is in the page
cache. Figures of other runs or machines cannot be compared with these; the ratio can. The journal's newest point is read: a
base and 100 logs that cover most of it in pieces of 4 to 64 KiB.

    python bench/view.py [--size MiB] [--points N] [--requests N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd
from points import DISK, EPOCH, put, seal, unsynced
from report import Row, say

from secondsite.journal import Journal
from secondsite.model.ids import ItemId
from secondsite.model.manifest import DiskPoint
from secondsite.nbd.image import ImageServer

MIB = 1 << 20
REPEATS = 5
ITEM = ItemId("00000000-0000-4000-8000-000000000001")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="disk in MiB")
    parser.add_argument(
        "--points", type=int, default=100, help="points over the base, each with 2 %% of the disk"
    )
    parser.add_argument("--requests", type=int, default=40_000, help="random reads for each figure")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/tmp"))
    try:
        flat = build(folder / "journal", folder / "flat", options.size * MIB, options.points)
        with view(folder / "journal", folder / "v") as ours, ImageServer(flat, "raw", folder / "q", False):
            uris = {
                "view": f"nbd+unix:///{DISK}?socket={ours}",
                "qemu-nbd": f"nbd+unix:///?socket={folder}/q",
            }
            subprocess.run(["qemu-img", "compare", "-q", *uris.values()], check=True)
            report(uris, options)
    finally:
        shutil.rmtree(folder)


def report(uris: dict[str, str], options: argparse.Namespace) -> None:
    mib, requests, size = options.size, options.requests, options.size * MIB
    tool = "fio" if shutil.which("fio") else "a loop over libnbd"
    measures: list[tuple[str, str, Callable[[str], float], float | None]] = [
        ("sequential, nbdcopy", "MiB/s", lambda uri: mib / timed_copy(uri), 1.0),
        (
            "sequential, nbdcopy, 1 connection",
            "MiB/s",
            lambda uri: mib / timed_copy(uri, "--connections=1"),
            None,
        ),
        (
            f"random 4 KiB, depth 1, {tool}",
            "IOPS",
            lambda uri: random_reads(uri, size, 1, requests // 8),
            None,
        ),
        (f"random 4 KiB, depth 16, {tool}", "IOPS", lambda uri: random_reads(uri, size, 16, requests), 0.8),
    ]
    for title, unit, measure, bound in measures:
        # In turns, so that what else the machine does meets both.
        rounds = [[measure(uri) for uri in uris.values()] for _ in range(REPEATS)]
        ours, theirs = (max(column) for column in zip(*rounds, strict=True))
        if bound is None:
            print(f"{title}: {ours:.0f} {unit} | qemu-nbd {theirs:.0f} {unit} | {ours / theirs:.2f} x")
            continue
        conditions = f"base + {options.points} logs, {mib} MiB disk, page cache, best of {REPEATS} in turns"
        peer = f"{theirs:.0f} {unit} qemu-nbd, flat file"
        say(
            Row(
                f"view, {title}",
                conditions,
                f"{ours:.0f} {unit}",
                peer,
                ours / theirs,
                "x",
                bound,
                least=True,
            )
        )


def timed_copy(uri: str, *options: str) -> float:
    begin = time.perf_counter()
    subprocess.run(["nbdcopy", *options, uri, "null:"], check=True)
    return time.perf_counter() - begin


def random_reads(uri: str, size: int, depth: int, count: int) -> float:
    if shutil.which("fio"):
        job = ["--name=r", "--ioengine=nbd", f"--uri={uri}", "--rw=randread", "--bs=4k", f"--iodepth={depth}"]
        limits = [f"--size={size}", f"--number_ios={count}", "--randseed=1", "--output-format=json"]
        done = subprocess.run(["fio", *job, *limits], check=True, capture_output=True)
        return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])
    handle = nbd.NBD()
    handle.connect_uri(uri)
    handle.set_pread_initialize(False)
    choose = random.Random(1)
    offsets = [choose.randrange(0, size // 4096) * 4096 for _ in range(count)]
    buffers = [nbd.Buffer.from_buffer(bytearray(4096)) for _ in range(depth)]
    begin = time.perf_counter()
    flying: dict[int, nbd.Buffer] = {}
    for offset in offsets:
        while not buffers:
            while (cookie := completed(handle)) is None:
                handle.poll(-1)
            buffers.append(flying.pop(cookie))
        buffer = buffers.pop()
        flying[handle.aio_pread(buffer, offset)] = buffer
    for cookie in flying:
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)
    return count / (time.perf_counter() - begin)


def completed(handle: nbd.NBD) -> int | None:
    """Return the cookie of a finished command, retired."""
    cookie = handle.aio_peek_command_completed()
    if cookie <= 0:
        return None
    handle.aio_command_completed(cookie)
    return int(cookie)


@contextlib.contextmanager
def view(journal: Path, socket: Path) -> Iterator[Path]:
    argv = [sys.executable, "-m", "secondsite.nbd.view", "--journal", str(journal), "--socket", str(socket)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "the view did not start"
        try:
            yield socket
        finally:
            process.terminate()


def build(path: Path, flat: Path, size: int, points: int) -> Path:
    """Make a journal whose base is full and whose points hold scattered small writes; `flat` is its newest point."""
    choose = random.Random(2)
    with (
        Journal.create(
            path, item=ITEM, name="bench", epoch=EPOCH, key=bytes(32), disks={DISK: size}
        ) as journal,
        flat.open("w+b") as file,
        unsynced(),
    ):
        for at in range(0, size, 64 * MIB):
            data = choose.randbytes(min(64 * MIB, size - at))
            file.write(data)
            journal.apply_initial(EPOCH, DISK, [put(journal, size, {at: data}).digest])
        previous = seal(journal, 1, None, DiskPoint(size))
        for number in range(2, points + 2):
            writes = {choose.randrange(0, size // 65536) * 65536: b"" for _ in range(size // 65536 // 50)}
            writes = {at: choose.randbytes(choose.choice([4096, 16384, 65536])) for at in sorted(writes)}
            for at, data in writes.items():
                file.seek(at)
                file.write(data)
            logs = (put(journal, size, writes),)
            previous = seal(journal, number, previous, DiskPoint(size, logs))
    return flat


if __name__ == "__main__":
    main()
