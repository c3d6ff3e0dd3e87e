"""One replication cycle, whole, beside an incremental backup of virtnbdbackup: with nothing changed, and after 1,000 scattered writes.

    python bench/cycle.py [--runs 7]

A cycle is the product's own (bench/protected.py): from the moment that it is due until its point is sealed at the target and the
source has taken note, between two node daemons over mutual TLS on loopback. The peer backs up another machine with an
equal disk, after the same writes, to a folder of the same file system; its program is started for each backup, as its user does.
Wire bytes are what TCP carried in both directions: parts, manifests, headers, answers, TLS.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import zstandard
from protected import VDA, Item, Site, Wire, site
from report import Row, say

from secondsite.capture.libvirt import LibvirtCapture
from secondsite.capture.port import Snapshot
from secondsite.model.units import BLOCK, GIB, MIB
from secondsite.node.source.belief import Belief
from secondsite.node.source.cycle import Cycle
from support.tracked_machines import TrackedMachine

WRITES = 1000
LEVELS = (1, 3)
THIN_TURNS = 4
"""Two times that should be nearly equal are told apart by many, on a machine that does other things, too."""
FILL = 64 * MIB
STEPS: dict[str, tuple[type, str]] = {
    "begin the snapshot": (Cycle, "_snapshot"),
    "ask what changed, look at sizes": (Cycle, "_follow_sizes"),
    "read, write and ship parts, end the snapshot": (Cycle, "_ship_changes"),
    "- of it: end the snapshot": (Snapshot, "close"),
    "manifest": (Cycle, "_manifest"),
    "promise": (Belief, "promise_point"),
    "seal at the target": (Belief, "seal"),
    "acknowledge": (Belief, "acknowledge"),
    "drop the old checkpoint": (LibvirtCapture, "forget"),
}


@dataclass
class Runs:
    """Seconds of all runs of one kind, and of their steps."""

    whole: list[float] = field(default_factory=list)
    steps: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @property
    def median_s(self) -> float:
        return statistics.median(self.whole)

    def show(self, title: str) -> None:
        print(
            f"{title}: median {1000 * self.median_s:.1f} ms, best {1000 * min(self.whole):.1f} ms; mean of the steps:"
        )
        for step, seconds in self.steps.items():
            print(f"  {step:46} {1000 * seconds / len(self.whole):8.1f} ms")

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the steps of what runs in here."""
        before = [(owner, name, getattr(owner, name)) for owner, name in STEPS.values()]
        for step, (owner, name, method) in zip(STEPS, before, strict=True):
            setattr(owner, name, self._timed(step, method))
        try:
            yield
        finally:
            for owner, name, method in before:
                setattr(owner, name, method)

    def _timed(self, step: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.steps[step] += time.perf_counter() - started

        return timed


def cycle(item: Item, runs: Runs) -> None:
    """Run one cycle and take down what it cost."""
    with runs.measured():
        seconds, _ = item.cycle()
    runs.whole.append(seconds)


# -- the peer ----------------------------------------------------------------------------------------------


class Peer:
    """virtnbdbackup of one machine into one folder: a full backup first, then incremental ones."""

    def __init__(self, here: Site, machine: TrackedMachine) -> None:
        if shutil.which("virtnbdbackup") is None:
            raise SystemExit(
                "virtnbdbackup is not installed: apt-get install --no-install-recommends virtnbdbackup"
            )
        # It takes qemu+unix: for a remote host that wants a password.
        uri = here.primary.uri.replace("qemu+unix:", "qemu:")
        folder = here.folder / "backup"
        self._command = ["virtnbdbackup", "-U", uri, "-d", machine.name, "-o", str(folder), "-n"]
        self._backup("full")

    def incremental(self) -> float:
        """Back up what changed; return the seconds."""
        return self._backup("inc")

    def _backup(self, level: str) -> float:
        started = time.perf_counter()
        done = subprocess.run([*self._command, "-l", level], capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"virtnbdbackup failed: {done.stderr}")
        return seconds


# -- what the guest writes ---------------------------------------------------------------------------------


def half_compressible(rng: random.Random, length: int) -> bytes:
    """Bytes of which every second 2 KiB are random, and the others text that repeats."""
    text = (b"a line of a log file, as there are many; " * 64)[: BLOCK // 2]
    return b"".join(rng.randbytes(BLOCK // 2) + text for _ in range(length // BLOCK))


def fill(here: Site, machines: list[TrackedMachine], size: int) -> None:
    """Fill the disks densely, all with the same."""
    pattern = here.folder / "fill"
    pattern.write_bytes(half_compressible(random.Random(0), FILL))
    for machine in machines:
        for offset in range(0, size, FILL):
            machine.io(VDA, f"write -s {pattern} {offset} {FILL}")
    pattern.unlink()


def scatter(here: Site, machines: list[TrackedMachine], size: int, seed: int) -> int:
    """Write WRITES different blocks of 4 KiB all over the disks; return their size together, compressed."""
    rng = random.Random(seed)
    offsets = sorted(block * BLOCK for block in rng.sample(range(size // BLOCK), WRITES))
    pattern = here.folder / "block"
    written = []
    for offset in rng.sample(offsets, WRITES):
        pattern.write_bytes(data := half_compressible(rng, BLOCK))
        written.append((offset, data))
        for machine in machines:
            machine.io(VDA, f"write -s {pattern} {offset} {BLOCK}")
    joined = b"".join(data for _, data in sorted(written))
    return min(len(zstandard.ZstdCompressor(level=level).compress(joined)) for level in LEVELS)


# -- rows --------------------------------------------------------------------------------------------------


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def idle_rows(runs: int, small: Item, large: Item, dense: Item, peer: Peer) -> None:
    ours, thin, huge = Runs(), Runs(), Runs()
    theirs = []
    for item in (small, large, dense):
        item.cycle()  # the second one after the initial replication finds everything in place
    for _ in range(runs):
        for _ in range(THIN_TURNS):
            cycle(small, thin)
            cycle(large, huge)
        cycle(dense, ours)
        theirs.append(peer.incremental())
    ours.show("nothing changed, dense disk of 1 GiB")
    thin.show("nothing changed, thin disk of 1 GiB")
    huge.show("nothing changed, thin disk of 500 GiB")
    their_s = statistics.median(theirs)
    how = f"whole cycle to the sealed point over mutual TLS, medians of {runs} taken in turns"
    say(
        Row(
            "one cycle with nothing changed",
            f"dense 1 GiB disk, {how}; peer: virtnbdbackup incremental, 1 s of which it sleeps",
            ms(ours.median_s),
            ms(their_s),
            ours.median_s / their_s,
            "x",
            0.1,
            least=False,
        )
    )
    say(
        Row(
            "the same, a thin disk of 500 GiB beside one of 1 GiB",
            f"64 MiB of data on each, whole cycle to the sealed point over mutual TLS, medians of {runs * THIN_TURNS} taken in turns",
            ms(huge.median_s),
            f"{ms(thin.median_s)} (ours, 1 GiB)",
            huge.median_s / thin.median_s,
            "x",
            1.2,
            least=False,
        )
    )


def scatter_rows(
    runs: int, here: Site, item: Item, peer: Peer, machines: list[TrackedMachine], size: int
) -> None:
    ours, theirs, ratios, carried, least = Runs(), [], [], [], []
    for run in range(runs):
        smallest = scatter(here, machines, size, seed=run)
        meter = Wire(here)
        cycle(item, ours)
        wire = meter.carried()
        carried.append(wire)
        least.append(smallest)
        ratios.append(wire / smallest)
        theirs.append(peer.incremental())
    ours.show(f"{WRITES} scattered writes of 4 KiB on the dense disk")
    their_s = statistics.median(theirs)
    how = f"dense 1 GiB disk, half-compressible data, medians of {runs} taken in turns"
    say(
        Row(
            "one cycle with 1,000 scattered 4 KiB writes",
            f"{how}; whole cycle to the sealed point over mutual TLS; peer: virtnbdbackup incremental after the same writes, 1 s of which it sleeps",
            ms(ours.median_s),
            ms(their_s),
            ours.median_s / their_s,
            "x",
            0.2,
            least=False,
        )
    )
    say(
        Row(
            "its bytes on the wire",
            f"{how}; all that TCP carried both ways, TLS and manifest included, beside the changed blocks as one zstd stream",
            f"{statistics.median(carried) / MIB:.2f} MiB",
            f"{statistics.median(least) / MIB:.2f} MiB",
            statistics.median(ratios),
            "x",
            1.2,
            least=False,
        )
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with site() as here:
        thin = here.machine("thin", GIB)
        huge = here.machine("huge", 500 * GIB)
        pair = [here.machine("dense", GIB), here.machine("peer", GIB)]
        fill(here, [thin, huge], FILL)
        fill(here, pair, GIB)
        peer = Peer(here, pair[1])
        small, large, dense = (here.protect(machine) for machine in (thin, huge, pair[0]))
        idle_rows(runs, small, large, dense, peer)
        scatter_rows(runs, here, dense, peer, pair, GIB)
        print(f"load at the end: {os.getloadavg()[0]:.1f}")
        for machine in (thin, huge, *pair):
            machine.remove()


if __name__ == "__main__":
    main()
