"""How the service bears a vault of 1,000 items that all report every five seconds.

The service is a process of its own, on SQLite, with a day of history in its tables (2,880 points and 1,440 minutes of figures for each
item). Simulated nodes, in another process, speak the nodes' real face with real certificates: each reports all of its items every
five seconds, every item with a new point, and long-polls. This process is the people: it lists items, shows items, jobs, points and
the vault through the API with the product's client. Timed are the people's calls and the nodes' reports, at the caller.

    python bench/service.py [--items 1000] [--pairs 10] [--seconds 60] [--runs 2]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from report import Row, say
from service_world import World, build

from secondsite.api_client import ApiClient
from secondsite.ship.identity import SERVICE

FREQUENCY_S = 5
POINTS = 2880
PAUSE_S = 0.1
BOUND_MS, BOUND_MIB = 100.0, 300.0


def page(api: ApiClient, rng: random.Random, items: int) -> None:
    """A page of the list of items, as `item list` asks for it."""
    after = f"machine-{rng.randrange(items):04}"
    assert api.get("/items", limit=100, after=after) is not None


def calls(items: int) -> dict[str, Callable[[ApiClient, random.Random], object]]:
    """What people ask for, and how."""

    def name(rng: random.Random) -> str:
        return f"machine-{rng.randrange(items):04}"

    return {
        "item list": lambda api, rng: page(api, rng, items),
        "item show": lambda api, rng: api.get(f"/items/{name(rng)}"),
        "points": lambda api, rng: api.get(f"/items/{name(rng)}/points", limit=100),
        "jobs": lambda api, _rng: api.get("/jobs", limit=100),
        "jobs of an item": lambda api, rng: api.get("/jobs", item=name(rng)),
        "vault": lambda api, _rng: api.get("/vault"),
        "nodes": lambda api, _rng: api.get("/nodes"),
    }


def people(world: World, items: int, until: float) -> dict[str, list[float]]:
    """Ask for everything in turn, with a short pause, until the time is over; seconds by call."""
    api, rng = world.api, random.Random(4)
    kinds = calls(items)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    while time.monotonic() < until:
        for kind, call in kinds.items():
            begun = time.perf_counter()
            call(api, rng)
            seconds[kind].append(time.perf_counter() - begun)
            time.sleep(PAUSE_S)
    return seconds


def memory_mib(pid: int) -> tuple[float, float]:
    """RSS now and its peak."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return tuple(int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(world: World, folder: Path, items: int, seconds: float) -> dict[str, Any]:
    """One measurement of so many seconds, after one interval that is not counted."""
    plan = folder / "plan.json"
    nodes_face = world.addresses["nodes"]
    plan.write_text(
        json.dumps(
            {
                "host": nodes_face["host"],
                "port": nodes_face["port"],
                "service": SERVICE,
                "every_s": FREQUENCY_S,
                "points": POINTS,
                "seconds": seconds + 2 * FREQUENCY_S,
                "nodes": world.nodes,
            }
        )
    )
    load = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "service_load.py"), str(plan)], stdout=subprocess.PIPE
    )
    reader: list[bytes] = []
    assert load.stdout is not None
    thread = threading.Thread(target=lambda out=load.stdout: reader.append(out.read()))
    thread.start()
    time.sleep(2 * FREQUENCY_S)  # every item has reported once; caches are as they are in the long run
    cpu, begun = cpu_s(world.process.pid), time.monotonic()
    asked = people(world, items, begun + seconds)
    used = (cpu_s(world.process.pid) - cpu) / (time.monotonic() - begun)
    rss, peak = memory_mib(world.process.pid)
    load.wait(60)
    thread.join()
    said = json.loads(reader[0])
    for node in world.nodes:
        node["first_sequence"] += 1000
    return {
        "asked": asked,
        "reports": said["reports"],
        "failed": said["failed"],
        "rss": rss,
        "peak": peak,
        "cpu": used,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=10, help="pairs of nodes")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the folder, and say where it is")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ssb-"))
    world = None
    try:
        world = build(folder, options.items, options.pairs, POINTS, FREQUENCY_S)
        print(
            f"{options.items} items on {2 * options.pairs} nodes; load {os.getloadavg()[0]:.1f}", flush=True
        )
        runs = [run(world, folder, options.items, options.seconds) for _ in range(options.runs)]
        tell(runs, options)
    finally:
        if world is not None:
            world.stop()
        if options.keep:
            print(folder)
        else:
            shutil.rmtree(folder)


def tell(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print each call's figures and the two rows."""
    everything: list[list[float]] = []
    for done in runs:
        table = done["asked"] | {"node report": done["reports"]}
        everything.append([second for seconds in table.values() for second in seconds])
        print(f"{'call':18}{'count':>7}{'median':>9}{'p99':>9}{'worst':>9}  ms")
        for kind, seconds in table.items():
            median, p99 = (float(np.percentile(seconds, part)) * 1000 for part in (50, 99))
            print(f"{kind:18}{len(seconds):>7}{median:>9.1f}{p99:>9.1f}{max(seconds) * 1000:>9.1f}")
        print(
            f"service: {done['cpu']:.0%} of a core, RSS {done['rss']:.0f} MiB, peak {done['peak']:.0f}; failed reports {done['failed']}"
        )
    p99 = float(np.median([np.percentile(seconds, 99) for seconds in everything])) * 1000
    median = float(np.median([np.percentile(seconds, 50) for seconds in everything])) * 1000
    peak = max(done["peak"] for done in runs)
    conditions = (
        f"{2 * options.pairs} simulated nodes over mutual TLS, each reports all its items with a new point each and the inventory every"
        f" {FREQUENCY_S} s; SQLite with {POINTS} points and a day of figures per item; item list in pages of 100, item show, points, jobs,"
        f" vault, nodes and reports taken together, {options.seconds:.0f} s, median of {len(runs)}; load generator on the same two cores"
    )
    say(
        Row(
            f"service with {options.items} items, API 99th percentile",
            conditions,
            f"{p99:.0f} ms (median {median:.0f} ms)",
            "",
            p99,
            "ms",
            BOUND_MS,
            least=False,
        )
    )
    say(
        Row(
            f"service with {options.items} items, RSS",
            "the same run; peak of the process since its start",
            f"{peak:.0f} MiB",
            "",
            peak,
            "MiB",
            BOUND_MIB,
            least=False,
        )
    )


if __name__ == "__main__":
    main()
