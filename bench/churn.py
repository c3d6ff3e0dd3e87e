"""The highest churn that is protected at a copy frequency of 5 s with an RPO of 10 s, all of it on this machine.

A lab with two sites protects a machine without an operating system (bare_machine.py), whose disk gets random data at a given rate, at
random places. Each step holds a rate for some cycles while the newest point's age is sampled from the journal's files; a rate is held if
the 95th percentile of the age is at most 10 s and no backlog grows (the age's median in the step's second half). Rates go up until one is not
held, or down until one is. Everything shares the processors: the writer, QEMU, both nodes, the service, both libvirtd.

    python bench/churn.py [--rates 50,75,100] [--cycles 8]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from bare_machine import BareLab, bare_lab
from report import Row, say

from secondsite.journal import Journal
from secondsite.model.units import BLOCK, GIB, KIB

FREQUENCY_S = 5.0
LIMIT_S = 10.0
BOUND = 50.0
DISK = 16 * GIB
MEGABYTE = 1_000_000
PATTERNS = 32
DOWN = (40.0, 30.0, 20.0, 10.0, 5.0)


@dataclass
class Writer:
    """Writes random data to the machine's disk at `rate` bytes a second, in a thread; counts what was written."""

    lab: BareLab
    size: int
    rate: float = 0.0
    written: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Make the files that the data comes from, and begin."""
        self._patterns = []
        for number in range(PATTERNS):
            path = self.lab.folder / f"pattern-{number}"
            path.write_bytes(os.urandom(self.size))
            path.chmod(0o644)
            self._patterns.append(path)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng = random.Random(5)
        begin, since, rate = time.monotonic(), 0, self.rate
        while not self._stop.is_set():
            if rate != self.rate:
                begin, since, rate = time.monotonic(), 0, self.rate
            ahead = since - (time.monotonic() - begin) * rate
            if ahead >= 0:
                self._stop.wait(0.005 + (ahead / rate if rate else 0.1))
                continue
            # At a multiple of the length, so that one write does not undo another: what is written is what changed.
            offset = rng.randrange(DISK // self.size) * self.size
            self.lab.write(f"write -s {rng.choice(self._patterns)} {offset} {self.size}")
            since += self.size
            self.written += self.size


def ages(journal: Path, seconds: float) -> list[float]:
    """Sample the newest point's age."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with Journal.open(journal, writable=False) as reader:
            newest = reader.points()[-1]
        found.append((datetime.now(UTC) - newest.time).total_seconds())
        time.sleep(0.25)
    return found


def step(writer: Writer, journal: Path, rate: float, cycles: int) -> tuple[float, float, bool]:
    """Hold a rate (MB/s); return the rate that was really written, the age's 95th percentile, and whether it is held."""
    writer.rate = rate * MEGABYTE
    time.sleep(2 * FREQUENCY_S)  # the first cycles still hold less
    begun, before = time.monotonic(), writer.written
    found = ages(journal, cycles * FREQUENCY_S)
    real = (writer.written - before) / (time.monotonic() - begun) / MEGABYTE
    median, p95, worst = (float(np.percentile(found, part)) for part in (50, 95, 100))
    late = float(np.percentile(found[len(found) // 2 :], 95))
    held = p95 <= LIMIT_S and late <= LIMIT_S and real >= 0.95 * rate
    cycle = writer.lab.item()["replication"]["source"]["last_cycle"]
    print(
        f"{rate:6.0f} MB/s asked, {real:6.1f} written: newest point {median:5.2f} s old (median), {p95:5.2f} (95th percentile),"
        f" {worst:5.2f} (worst); a cycle {cycle['seconds']:.1f} s with {cycle['bytes_changed'] / MEGABYTE:.0f} MB;"
        f" load {os.getloadavg()[0]:.1f}: {'held' if held else 'NOT HELD'}",
        flush=True,
    )
    return real, p95, held


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rates", default="50,65,80,100", help="MB/s, ascending; from the first on down if that is not held"
    )
    parser.add_argument("--cycles", type=int, default=8, help="of each step")
    parser.add_argument("--write-kib", type=int, default=256, help="length of a write")
    parser.add_argument("--budget", type=float, default=210, help="begin no step after so many seconds")
    options = parser.parse_args()
    begun = time.monotonic()
    best, best_age = 0.0, 0.0
    with bare_lab(DISK) as lab:
        journal = lab.protect()
        writer = Writer(lab, options.write_kib * KIB // BLOCK * BLOCK)
        writer.start()
        rates = [float(rate) for rate in options.rates.split(",")]
        while rates and time.monotonic() - begun < options.budget - (options.cycles + 2) * FREQUENCY_S:
            rate = rates.pop(0)
            real, age, held = step(writer, journal, rate, options.cycles)
            if held:
                best, best_age = real, age
            elif best:
                break
            else:
                rates = [lower for lower in DOWN if lower < rate]
            if best and rates and rates[0] < best:
                break
        writer.close()
    say(
        Row(
            "sustained churn at 5 s with RPO <= 10 s",
            f"random data in writes of {options.write_kib} KiB at random places of a disk of {DISK // GIB} GiB, through the device of a paused QEMU;"
            f" steps of {options.cycles} cycles; both sites, service, writer and QEMU on {os.cpu_count()} cores",
            f"{best:.0f} MB/s, age {best_age:.1f} s (95th percentile)",
            "",
            best,
            "MB/s",
            BOUND,
            least=True,
        )
    )


if __name__ == "__main__":
    main()
