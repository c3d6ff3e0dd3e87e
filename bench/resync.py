"""The resync after a killed QEMU, beside a compare of the same two disks by qemu-img.

    python bench/resync.py [--runs 3] [--disk-gib 10] [--data-gib 2]

A machine is protected (bench/protected.py), writes to 1 % of its disk since its last point, and its QEMU is killed: what it had
tracked is lost. It starts again, and the next cycle reads the disk against the digest table, ships what
differs and seals a point; that whole cycle is what is timed. The peer then compares the machine's disk with the point, extracted as
a raw image, which are equal: at the first difference it would end. Both are measured with their files on the disk only, as most
of a large disk is, and with them in the page cache; the two take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from protected import VDA, Item, Site, Wire, site
from report import Row, say

from secondsite.journal.extract import extract_disk
from secondsite.model.manifest import PointKind
from secondsite.model.units import GIB, KIB, MIB
from support.node_pair import wait_until
from support.tracked_machines import TrackedMachine

FILL = 64 * MIB
PIECE = 64 * KIB
SHARE = 0.01


def fill(here: Site, machine: TrackedMachine, size: int) -> None:
    """Fill the disk's beginning with what does not compress."""
    pattern = here.folder / "fill"
    pattern.write_bytes(os.urandom(FILL))
    for offset in range(0, size, FILL):
        machine.io(VDA, f"write -s {pattern} {offset} {FILL}")
    pattern.unlink()


def change(here: Site, machine: TrackedMachine, data: int, count: int, seed: int) -> int:
    """Write to `count` pieces all over the data; return the bytes."""
    rng = random.Random(seed)
    pattern = here.folder / "piece"
    for piece in rng.sample(range(data // PIECE), count):
        pattern.write_bytes(rng.randbytes(PIECE))
        machine.io(VDA, f"write -s {pattern} {piece * PIECE} {PIECE}")
    machine.io(VDA, "flush")
    pattern.unlink()
    return count * PIECE


def kill(here: Site, machine: TrackedMachine) -> None:
    """kill -9 of the machine's QEMU, and start it again."""
    (guest,) = [
        process
        for process in here.primary.guests()
        if any(f"guest={machine.name}," in word for word in process.command_line)
    ]
    os.kill(guest.pid, signal.SIGKILL)
    wait_until(lambda: not machine.domain.isActive(), what="the end of the killed QEMU")
    machine.start()


def into_cache(path: Path) -> None:
    """Have the file in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def out_of_cache(path: Path) -> None:
    """Have the file on the disk only."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


CACHES = {"on the disk only": out_of_cache, "in the page cache": into_cache}


def compare(
    here: Site, item: Item, machine: TrackedMachine, sequence: int, prepare: Callable[[Path], None]
) -> float:
    """Shut the machine off, and have qemu-img compare its disk with the point; return the seconds."""
    machine.stop()
    raw = here.folder / "point.raw"
    with here.nodes.recovery.daemon.journals.get(item.id).view(
        sequence, purpose="bench", verify=True
    ) as view:
        extract_disk(view, VDA, raw)
    image = machine.images[VDA]
    prepare(image)
    prepare(raw)
    command = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(raw)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    raw.unlink()
    if done.returncode != 0:
        raise SystemExit(f"the point is not what the machine's disk is: {done.stdout}{done.stderr}")
    machine.start()
    return seconds


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--disk-gib", type=int, default=10)
    parser.add_argument("--data-gib", type=int, default=2)
    options = parser.parse_args()
    size, data = options.disk_gib * GIB, options.data_gib * GIB
    ours: dict[str, list[float]] = {where: [] for where in CACHES}
    theirs: dict[str, list[float]] = {where: [] for where in CACHES}
    ratios: list[float] = []
    changed = 0
    with site() as here:
        machine = here.machine("killed", size)
        fill(here, machine, data)
        item = here.protect(machine)
        for run in range(options.runs * len(CACHES)):
            where, prepare = list(CACHES.items())[run % len(CACHES)]
            changed = change(here, machine, data, int(size * SHARE) // PIECE, seed=run)
            kill(here, machine)
            prepare(machine.images[VDA])
            meter = Wire(here)
            seconds, outcome = item.cycle()
            ratios.append(meter.carried() / changed)
            assert outcome.kind is PointKind.RESYNC, outcome
            ours[where].append(seconds)
            theirs[where].append(compare(here, item, machine, outcome.sequence, prepare))
            print(f"{where}: ours {seconds:.2f} s, peer {theirs[where][-1]:.2f} s, wire {ratios[-1]:.3f} x")
            item.cycle()  # of the machine that was off meanwhile: nothing has changed
        machine.remove()
    how = (
        f"{options.disk_gib} GiB disk with {options.data_gib} GiB of incompressible data (to fill all of it takes longer than a benchmark may), "
        f"1 % of the disk written in pieces of 64 KiB, medians of {options.runs}"
    )
    for where in CACHES:
        our_s, their_s = statistics.median(ours[where]), statistics.median(theirs[where])
        say(
            Row(
                "resync after a killed qemu",
                f"{how}; files {where}; whole cycle with shipping and seal; peer: qemu-img compare with the point as a raw image",
                f"{our_s:.2f} s",
                f"{their_s:.2f} s",
                our_s / their_s,
                "x",
                1.0,
                least=False,
            )
        )
    say(
        Row(
            "its bytes on the wire",
            f"{how}; all that TCP carried both ways, beside the bytes written",
            f"{changed * statistics.median(ratios) / MIB:.1f} MiB",
            f"{changed / MIB:.1f} MiB",
            statistics.median(ratios),
            "x",
            1.1,
            least=False,
        )
    )
    print(f"load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
