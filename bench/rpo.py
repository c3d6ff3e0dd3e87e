"""How old is the newest recovery point? The 5-second copy frequency, measured over many cycles.

Starts a lab with a guest that writes, protects it, and asks the journal's files several times a second for the newest
sealed point; its age is now minus its time, the instant from which it holds everything. Prints the median, the 95th
percentile and the worst, and how many cycles were missed (gaps of more than one and a half intervals between points).
Ends with 1 if the 95th percentile is above the limit.

    python bench/rpo.py [--cycles N] [--rate RECORDS] [--limit S] [--json] [--journal DIR]

With --journal it starts nothing, but watches the journal of an item that is being replicated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from secondsite.api_client import ApiClient, Connection
from secondsite.journal import Journal
from secondsite.lab import sites
from secondsite.lab.guest.builder import GuestBuilder
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks

INTERVAL_S = 5.0
SAMPLE_S = 0.25
LIMIT_S = 10.0


@dataclass(frozen=True)
class Figures:
    """Ages in seconds. `missed`: cycles that left a gap of more than one and a half intervals before their point."""

    cycles: int
    samples: int
    median_s: float
    p95_s: float
    worst_s: float
    missed: int
    limit_s: float

    @property
    def held(self) -> bool:
        return self.p95_s <= self.limit_s


def measure(journal: Path, cycles: int, limit_s: float = LIMIT_S) -> Figures:
    """Watch the journal until so many points more were sealed; give up after three times the time that they need."""
    times = {}
    ages = []
    deadline = time.monotonic() + 3 * cycles * INTERVAL_S
    while len(times) <= cycles and time.monotonic() < deadline:
        with Journal.open(journal, writable=False) as reader:
            newest = reader.points()[-1]
        ages.append((datetime.now(UTC) - newest.time).total_seconds())
        times[newest.sequence] = newest.time
        time.sleep(SAMPLE_S)
    gaps = np.diff([at.timestamp() for _, at in sorted(times.items())])
    median, p95, worst = (round(float(np.percentile(ages, part)), 3) for part in (50, 95, 100))
    return Figures(
        len(times) - 1, len(ages), median, p95, worst, int(np.sum(gaps > 1.5 * INTERVAL_S)), limit_s
    )


@contextmanager
def replicated(rate: int) -> Iterator[Path]:
    """A lab of its own with a protected guest; the journal's folder."""
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        facts = sites.up(folder / "lab", lambda text: print(text, file=sys.stderr))
        lab = sites.Lab.load(folder / "lab")
        hypervisor = lab.hypervisor("primary")
        files = GuestBuilder().build().copy_to(folder / "boot")
        disks = [hypervisor.own(disk) for disk in create_disks(hypervisor.storage, "rpo", size=1 << 30)]
        with hypervisor.connect() as connection:
            connection.defineXML(domain_xml("rpo", files, disks, rate=rate)).create()
        api = ApiClient(Connection(facts["url"], facts["token"], Path(facts["ca"])))
        while not any(row["name"] == "rpo" and row["ready"] for row in api.get("/protectable-items")):
            time.sleep(0.2)
        print("protecting the guest", file=sys.stderr)
        job = api.post("/items", {"vm": "rpo"})
        while (state := api.get(f"/jobs/{job['id']}")["state"]) not in {"Succeeded", "Failed"}:
            time.sleep(0.2)
        if state == "Failed":
            raise SystemExit("the guest could not be protected")
        yield Path(facts["sites"]["secondary"]["journals"]) / api.get("/items/rpo")["id"]
    finally:
        sites.down(folder / "lab")
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=60)
    parser.add_argument("--rate", type=int, default=200, help="records that the guest writes a second")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for the 95th percentile")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--journal", type=Path, help="watch this journal instead of a lab of its own")
    options = parser.parse_args()
    if options.journal is not None:
        figures = measure(options.journal, options.cycles, options.limit)
    else:
        with replicated(options.rate) as journal:
            print(f"watching {options.cycles} cycles", file=sys.stderr)
            figures = measure(journal, options.cycles, options.limit)
    if options.json:
        print(json.dumps({**asdict(figures), "held": figures.held}))
    else:
        print(
            f"over {figures.cycles} cycles of {INTERVAL_S:.0f} s: newest point {figures.median_s} s old (median), "
            f"{figures.p95_s} s (95th percentile, limit {figures.limit_s}), {figures.worst_s} s (worst); "
            f"{figures.missed} cycles missed"
        )
    return 0 if figures.held and figures.cycles >= options.cycles else 1


if __name__ == "__main__":
    sys.exit(main())
