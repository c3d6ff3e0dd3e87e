"""Times of one capture cycle on a real QEMU machine: idle, and with 1,000 scattered writes of 4 KiB.

    python bench/cycle.py [--disk-gib 64] [--runs 5]

A cycle is everything that the source does but shipping: begin the snapshot, ask what changed, read it, compare digests,
write the parts, end the snapshot, advance the table, drop the old checkpoint. The machine runs without an operating
system (paused, so that it takes no processor time); the writes go through its disk's device. virtnbdbackup is
measured beside it if it is installed: an incremental backup of the same machine to a folder.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from secondsite.blocks import DigestTable
from secondsite.capture.parts import Mode, produce
from secondsite.capture.select import capture_for
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey
from secondsite.model.units import GIB, KIB, MIB
from support.tracked_machines import TrackedMachine

VDA = DiskKey("vda")
KEY = b"b" * 32
WRITES = 1000


class Bench:
    """One machine, its table and the checkpoint of the last cycle."""

    def __init__(self, hypervisor: Hypervisor, folder: Path, size: int) -> None:
        self.machine = TrackedMachine(hypervisor, folder, "bench", {VDA: size})
        self.table = DigestTable.create(folder / "vda.tbl", size, KEY)
        self.uri = hypervisor.uri
        self.scratch = self.machine.scratch
        self.spool = folder / "spool"
        self.spool.mkdir()
        self.checkpoint: str | None = None
        self.cycles = 0

    def cycle(self) -> dict[str, float]:
        """Run one cycle; return seconds per step, and the MiB read and shipped."""
        self.cycles += 1
        started = time.perf_counter()
        capture = capture_for(self.uri, "bench", [VDA], self.scratch)
        with capture.snapshot(since=self.checkpoint, new=f"ss-bench-{self.cycles}") as snapshot:
            begun = time.perf_counter()
            mode = Mode.COMPARE if self.checkpoint is None else Mode.CHANGED
            read = [0]
            parts = list(
                produce(
                    snapshot.disks[VDA],
                    VDA,
                    self.table,
                    mode,
                    self.spool,
                    digest_key=KEY,
                    time=snapshot.time,
                    progress=lambda done, _total: read.__setitem__(0, done),
                )
            )
            produced = time.perf_counter()
        ended = time.perf_counter()
        for part in parts:
            part.pending.apply(self.table)
            part.path.unlink()
        self.table.sync()
        applied = time.perf_counter()
        capture.forget(keep={snapshot.checkpoint})
        self.checkpoint = snapshot.checkpoint
        done = time.perf_counter()
        return {
            "begin": begun - started,
            "read": produced - begun,
            "end": ended - produced,
            "table": applied - ended,
            "forget": done - applied,
            "total": done - started,
            "MiB read": read[0] / MIB,
            "MiB shipped": sum(part.changed for part in parts) / MIB,
        }

    def scatter(self, size: int, seed: int) -> None:
        """Write 4 KiB blocks all over the first GiB."""
        rng = random.Random(seed)
        for _ in range(WRITES):
            offset = rng.randrange(min(size, GIB) // (4 * KIB)) * 4 * KIB
            self.machine.io(VDA, f"write -P {rng.randint(1, 255)} {offset} 4k")


def measure(title: str, runs: int, before: Callable[[int], None], bench: Bench) -> None:
    """Print the median of each step over `runs` cycles."""
    results = []
    for run in range(runs):
        before(run)
        results.append(bench.cycle())
    print(f"{title} (median of {runs})")
    for step in results[0]:
        value = statistics.median(result[step] for result in results)
        print(
            f"  {step:12} {value:9.2f}" if step.startswith("MiB") else f"  {step:12} {value * 1000:9.1f} ms"
        )


def measure_peer(bench: Bench, folder: Path, runs: int) -> None:
    """Print virtnbdbackup's times for an incremental backup in which nothing changed."""
    tool = shutil.which("virtnbdbackup")
    if tool is None:
        print("virtnbdbackup: not installed, nothing to compare with")
        return
    command = [tool, "-U", bench.uri, "-d", "bench", "-o", str(folder)]
    times = []
    for level in ["full"] + ["inc"] * runs:
        started = time.perf_counter()
        done = subprocess.run([*command, "-l", level], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"virtnbdbackup: failed: {done.stderr.strip().splitlines()[-1:]}")
            return
        times.append(time.perf_counter() - started)
    print(f"virtnbdbackup: full {times[0]:.2f} s, idle incremental {statistics.median(times[1:]):.2f} s")


def main() -> None:
    """Run it."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--disk-gib", type=int, default=64)
    arguments.add_argument("--runs", type=int, default=5)
    chosen = arguments.parse_args()
    size = chosen.disk_gib * GIB
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with Hypervisor(folder / "h", "bench") as hypervisor:
            bench = Bench(hypervisor, folder, size)
            bench.machine.start()
            bench.machine.io(VDA, "write -P 1 0 1G")
            measure(
                f"first cycle, 1 GiB of equal data on a disk of {chosen.disk_gib} GiB",
                1,
                lambda _: None,
                bench,
            )
            measure("idle cycle", chosen.runs, lambda _: None, bench)
            measure(
                f"{WRITES} scattered writes of 4 KiB",
                chosen.runs,
                lambda run: bench.scatter(size, run),
                bench,
            )
            measure_peer(bench, folder / "peer", chosen.runs)
            bench.machine.remove()
            bench.table.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
