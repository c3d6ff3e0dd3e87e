"""What protection costs the guest: the time of its writes, protected at a copy frequency of 5 s, and unprotected.

A guest of a lab of its own writes records of 4 KiB, each O_DIRECT and O_DSYNC, and measures each from its write until it is
stable; every span of SPAN_S it prints the percentiles on its console. It is measured unprotected, then protected (the
whole path: capture, mutual TLS, journal, all on this machine), and so on in turns. The row is the median of the spans'
99th percentiles.

    python bench/latency.py [--turns N] [--rate RECORDS]
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from report import Row, say

from secondsite.api_client import ApiClient, Connection
from secondsite.lab import sites
from secondsite.lab.console import ConsoleReader
from secondsite.lab.guest.builder import GuestBuilder
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor

SPAN_S = 10
SPANS = 2
BOUND = 1.2
NAME = "latency"
_LINE = re.compile(r"SS-LATENCY n=(\d+) p50=(\d+) p99=(\d+) max=(\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--rate", type=int, default=200, help="records that the guest writes a second, at most"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    bare: list[tuple[int, ...]] = []
    protected: list[tuple[int, ...]] = []
    print("spans are (records, p50, p99, max in us)", file=sys.stderr)
    with (
        lab_with_guest(options.rate) as (api, hypervisor),
        ConsoleReader(hypervisor, NAME) as console,
    ):
        for _ in range(options.turns):
            bare += spans(console)
            print("unprotected:", *bare[-SPANS:], file=sys.stderr)
            job(api, "/items", {"vm": NAME})
            ready = lambda: api.get(f"/items/{NAME}")["latest_point"] is not None  # noqa: E731
            wait(ready, "the first point")
            protected += spans(console)
            print("protected:", *protected[-SPANS:], file=sys.stderr)
            job(api, f"/items/{NAME}/disable", {"delete_replica": True})
    ours, theirs = (statistics.median(p99 for _, _, p99, _ in spans) for spans in (protected, bare))
    say(
        Row(
            "guest write latency, 99th percentile",
            f"4 KiB O_DSYNC records, at most {options.rate}/s, qcow2, TCG, protected at 5 s with both sites on this machine; "
            f"median of {len(bare)} spans of {SPAN_S} s in turns",
            f"{ours / 1000:.2f} ms",
            f"{theirs / 1000:.2f} ms unprotected",
            ours / theirs,
            "x",
            BOUND,
            least=False,
        )
    )


@contextmanager
def lab_with_guest(rate: int) -> Iterator[tuple[ApiClient, Hypervisor]]:
    """A lab of its own with a guest that runs and is not protected."""
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        facts = sites.up(folder / "lab", lambda text: print(text, file=sys.stderr))
        hypervisor = sites.Lab.load(folder / "lab").hypervisor("primary")
        files = GuestBuilder().build().copy_to(folder / "boot")
        disks = [hypervisor.own(disk) for disk in create_disks(hypervisor.storage, NAME, size=1 << 30)]
        xml = domain_xml(NAME, files, disks, rate=rate).replace("ss.rate=", f"ss.latency={SPAN_S} ss.rate=")
        with hypervisor.connect() as connection:
            connection.defineXML(xml).create()
        api = ApiClient(Connection(facts["url"], facts["token"], Path(facts["ca"])))
        known = lambda: any(row["name"] == NAME and row["ready"] for row in api.get("/protectable-items"))  # noqa: E731
        wait(known, "the service sees the guest")
        yield api, hypervisor
    finally:
        sites.down(folder / "lab")
        shutil.rmtree(folder)


def spans(console: ConsoleReader) -> list[tuple[int, ...]]:
    """Wait for whole spans that begin from now on."""
    begin = len(console.lines)
    deadline = time.monotonic() + (SPANS + 2) * SPAN_S * 2
    while True:
        found = [match for line in console.lines[begin:] if (match := _LINE.search(line))]
        if len(found) > SPANS:
            return [tuple(map(int, match.groups())) for match in found[1:]]  # the first one had begun before
        if time.monotonic() > deadline:
            raise SystemExit(f"the guest says no latencies: {console.lines[-5:]}")
        time.sleep(0.2)


def job(api: ApiClient, path: str, body: dict[str, Any]) -> None:
    """Ask for a job, and wait until it has succeeded."""
    number = api.post(path, body)["id"]
    wait(lambda: api.get(f"/jobs/{number}")["state"] in {"Succeeded", "Failed"}, path)
    if api.get(f"/jobs/{number}")["state"] == "Failed":
        raise SystemExit(f"{path} failed: {api.get(f'/jobs/{number}')}")


def wait(holds: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"not in {timeout_s:g} s: {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
