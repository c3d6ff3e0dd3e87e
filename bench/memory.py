"""How much memory a node takes that protects a thin disk of 1 TiB with 100,000 separate extents.

Two real `secondsite node run` processes (the source's and the target's), each with one item; their peak RSS (VmHWM) after each stage:
idle, initial replication, incremental cycles with scattered writes, a compare of the whole disk, and cycles after it.

    python bench/memory.py [--size-gib 1024] [--extents 100000] [--writes 2000]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import nbd
from bare_machine import BareLab, bare_lab
from report import Row, say

from secondsite.model.units import GIB, KIB
from secondsite.nbd.image import ImageServer

BOUND_MIB = 200.0
BLOCK = 4 * KIB
SIDES = {"primary": "source", "secondary": "target"}


def make_image(folder: Path, size: int, extents: int) -> Path:
    """A qcow2 of this size with so many blocks of 4 KiB of random data, each in a cluster of its own, far from the next."""
    image = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size)], check=True)
    stride = size // extents // BLOCK * BLOCK
    handle = nbd.NBD()
    with ImageServer(image, "qcow2", folder / "nbd", True):
        handle.connect_unix(str(folder / "nbd"))
        for index in range(extents):
            data = nbd.Buffer.from_bytearray(bytearray(os.urandom(BLOCK)))
            handle.aio_pwrite(data, index * stride, completion=lambda _error: 1)
            while handle.aio_in_flight() >= 32:
                handle.poll(-1)
        while handle.aio_in_flight():
            handle.poll(-1)
        handle.shutdown()
    return image


def memory(pid: int) -> dict[str, float]:
    """Peak RSS, RSS, and of it what is the process's own, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {key: int(value.split()[0]) / 1024 for key, value in (line.split(":", 1) for line in lines) if key in
             {"VmHWM", "VmRSS", "RssAnon", "RssFile"}}  # fmt: skip
    return found


def tell(lab: BareLab, stage: str, peaks: dict[str, float]) -> None:
    """Print both nodes' memory after a stage."""
    for site, side in SIDES.items():
        now = memory(lab.pid(site))
        peaks[side] = max(peaks.get(side, 0.0), now["VmHWM"])
        print(
            f"{stage:24}{side:8} peak {now['VmHWM']:6.0f} MiB, now {now['VmRSS']:6.0f}"
            f" (own {now['RssAnon']:.0f}, files {now['RssFile']:.0f})",
            flush=True,
        )


def cycles(lab: BareLab, extents: int, stride: int, writes: int, count: int) -> None:
    """Have so many points made, each with scattered new writes."""
    rng = random.Random(count)
    for _ in range(count):
        lab.write(
            *(f"write -P {rng.randint(1, 255)} {rng.randrange(extents) * stride} 4k" for _ in range(writes))
        )
        before = lab.item()["latest_point"]["sequence"]
        # The second point from now began after the writes.
        lab.wait(lambda before=before: lab.item()["latest_point"]["sequence"] >= before + 2, 90)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size-gib", type=int, default=1024)
    parser.add_argument("--extents", type=int, default=100_000)
    parser.add_argument("--writes", type=int, default=2000)
    options = parser.parse_args()
    size = options.size_gib * GIB
    stride = size // options.extents // BLOCK * BLOCK
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ssb-", dir="/tmp") as name:
        image = make_image(Path(name), size, options.extents)
        with bare_lab(size, qcow2=image) as lab:
            tell(lab, "idle", peaks)
            lab.protect(timeout_s=230)
            tell(lab, "initial replication", peaks)
            cycles(lab, options.extents, stride, options.writes, 2)
            tell(lab, "two cycles", peaks)
            lab.finish(lab.api.post("/items/bare/resync"), 120)
            cycles(lab, options.extents, stride, options.writes, 1)
            tell(lab, "compare, one more cycle", peaks)
            say_row(options, peaks)  # before the files go: so many extents take their time to be removed


def say_row(options: argparse.Namespace, peaks: dict[str, float]) -> None:
    """Print the row: the worse of the two nodes."""
    worst = max(peaks.values())
    say(
        Row(
            f"memory of a node protecting {options.size_gib} GiB thin with {options.extents:,} extents",
            "peak RSS of a real node process through initial replication, cycles with"
            f" {options.writes} scattered 4 KiB writes, a compare and a cycle after it; the worse of source and target",
            " / ".join(f"{side} {peak:.0f} MiB" for side, peak in peaks.items()),
            "",
            worst,
            "MiB",
            BOUND_MIB,
            least=False,
        )
    )


if __name__ == "__main__":
    main()
