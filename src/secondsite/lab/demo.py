"""The demo: one machine's story on a lab, each claim checked against the guest's own records.

The story is told through the command `secondsite`, as a newcomer would type it. The checks do not believe the product:
they read disks and consoles with `records`, `filesystem` and `console`, which share no code with it. A claim that does
not hold ends the demo with a failure, after the table.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from secondsite.errors import SecondSiteError, TimeoutExceededError
from secondsite.journal import Journal
from secondsite.lab import sites
from secondsite.lab.console import ConsoleReader
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.guest.builder import GuestBuilder
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.records import RecordCheck, check_records
from secondsite.model.units import BLOCK, GIB, MIB

NAME: Final = "demo-1"
DISKS: Final = ("vda", "vdb")
RPO_WATCH_S: Final = 45.0
INTERVAL_S: Final = 5.0

Say = Callable[[str], None]


@dataclass
class Claims:
    """What was claimed, whether it held, and what was measured."""

    held: list[tuple[str, bool, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, claim: str, holds: bool, seen: object = "") -> None:
        """Note a claim and whether it holds."""
        self.held.append((claim, bool(holds), str(seen)))

    @property
    def failed(self) -> list[str]:
        """The claims that do not hold, with what was seen instead."""
        return [f"{claim}: {seen}" for claim, holds, seen in self.held if not holds]


class Demo:
    """See the module's docstring. `say` prints a line; `watch_s`: how long the RPO is sampled."""

    def __init__(self, folder: Path, say: Say, *, watch_s: float = RPO_WATCH_S) -> None:
        self._folder = folder
        self._say = say
        self._watch_s = watch_s
        self.claims = Claims()
        self._lab: dict[str, Any] = {}
        self._hypervisors: dict[str, Hypervisor] = {}

    def run(self) -> Claims:
        """Tell the story; the lab is ended in any case."""
        started = time.monotonic()
        try:
            self._chapter("Two sites on this machine", self._set_up)
            self._chapter("A machine that writes", self._start_guest)
            self._chapter("Protect it", self._protect)
            self._chapter(f"Watch it for {self._watch_s:.0f} s", self._watch)
            self._chapter("Test the failover", self._test)
            self._chapter("Fail over, as planned", self._fail_over)
            self._chapter("Commit, and replicate the other way", self._reverse)
            self._chapter("Fail back", self._fail_back)
            self._chapter("Stop protecting it", self._disable)
            self.claims.figures["seconds_in_all"] = round(time.monotonic() - started, 1)
        finally:
            self._say("\n== Clean up")
            if (self._folder / "lab.json").exists():
                sites.down(self._folder, purge=True)
        return self.claims

    # -- chapters --------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self._lab = sites.up(self._folder, lambda text: self._say(f"   {text}"))
        lab = sites.Lab.load(self._folder)
        self._hypervisors = {site: lab.hypervisor(site) for site in sites.SITES}

    def _start_guest(self) -> None:
        home = self._hypervisors["primary"]
        files = GuestBuilder().build().copy_to(self._folder / "boot")
        images = [home.own(image) for image in create_disks(home.storage, NAME, count=2, size=GIB)]
        connection = home.connect()
        try:
            networks = ["lab-prod"] if home.has_networks else []
            xml = domain_xml(NAME, files, images, rate=200, networks=networks)
            connection.defineXML(xml).create()
        finally:
            connection.close()
        with self._console("primary", NAME) as console:
            self._say(f"   the guest runs and has written record {console.record(60)}")
        self._wait(
            lambda: any(vm["name"] == NAME for vm in self._cli("item", "protectable")), "the inventory"
        )

    def _protect(self) -> None:
        began = time.monotonic()
        job = self._cli("item", "protect", NAME)
        seconds = time.monotonic() - began
        item = self._item()
        counters = self._counters(item)
        self.claims.figures["initial_replication_seconds"] = round(seconds, 1)
        self.claims.figures["initial_replication_bytes_changed"] = counters["bytes_changed"]
        self.claims.figures["initial_replication_bytes_shipped"] = counters["bytes_shipped"]
        self.claims.check("the initial replication succeeds", job["state"] == "Succeeded", job["state"])
        self._say(f"   protected after {seconds:.1f} s, {_mib(counters['bytes_shipped'])} on the wire")

    def _watch(self) -> None:
        ages = self._ages(self._watch_s)
        points = self._cli("point", "list", NAME, "--limit", "10000")
        self.claims.figures["rpo_median_s"] = round(statistics.median(ages), 1)
        self.claims.figures["rpo_worst_s"] = round(max(ages), 1)
        self.claims.figures["points_kept"] = len(points)
        self.claims.check(
            "the newest point is never older than 10 s", max(ages) <= 10.0, f"{max(ages):.1f} s"
        )
        self._say(
            f"   RPO {statistics.median(ages):.1f} s (median), {max(ages):.1f} s (worst); {len(points)} points"
        )

    def _test(self) -> None:
        before = self._cli("point", "list", NAME, "--limit", "1")[0]["sequence"]
        began = time.monotonic()
        job = self._cli("item", "test-failover", NAME)
        running = time.monotonic() - began
        with self._console("secondary", f"{NAME}-test") as console:
            first = console.first_record(60)
            to_first = time.monotonic() - began
        point = int(job["result"]["sequence"])
        disks = self._extract("secondary", point)
        found = self._judge("the test's point", disks)
        self.claims.check("the test's machine goes on right after its point", first == found.last + 1, first)
        self.claims.figures["test_failover_seconds_to_running"] = round(running, 1)
        self.claims.figures["test_failover_seconds_to_first_record"] = round(to_first, 1)
        self._say(
            f"   {NAME}-test runs after {running:.1f} s from point {point}; its first record is {first}"
        )
        self._cli("item", "cleanup-test", NAME)
        after = self._wait(
            lambda: [
                p for p in self._cli("point", "list", NAME, "--limit", "200") if p["sequence"] > before + 2
            ],
            "points during the test",
        )
        self._check_no_delay(before)
        self.claims.check("replication goes on during the test", bool(after))
        left = self._leftovers()
        self.claims.check("the clean-up leaves nothing behind", not left, left)

    def _fail_over(self) -> None:
        self._record_loss("primary", "secondary", "planned_failover")

    def _reverse(self) -> None:
        there = self._hypervisors["secondary"]
        point = int(self._cli("item", "show", NAME)["failover"]["sequence"])
        before = self._extract("secondary", point)  # the journal goes with the commit
        with self._console("secondary", NAME) as console:
            console.record(30)
        self._cli("item", "commit", NAME)
        began = time.monotonic()
        self._cli("item", "reverse", NAME)
        first = min(p["sequence"] for p in self._cli("point", "list", NAME) if p["sequence"] > point)
        cycle = self._wait(lambda: self._cycle(first), "the first cycle's figures")
        self._say(f"   replicates from {there.name} to primary after {time.monotonic() - began:.1f} s")
        after = self._extract("primary", first)
        changed = _changed_bytes(before, after)
        self._judge("the first point in reverse", after)
        shipped = int(cycle["bytes_shipped"])
        self.claims.figures["reverse_bytes_changed"] = changed
        self.claims.figures["reverse_bytes_shipped"] = shipped
        self.claims.check(
            "reverse replication ships at most 1.1 x what changed plus 8 MiB",
            shipped <= 1.1 * changed + 8 * MIB,
            f"{shipped} of {changed} bytes",
        )
        self._say(f"   {_mib(shipped)} shipped for {_mib(changed)} changed")

    def _fail_back(self) -> None:
        self._record_loss("secondary", "primary", "failback")
        self._cli("item", "commit", NAME)
        self._cli("item", "reverse", NAME)
        item = self._cli("item", "show", NAME)
        self.claims.check(
            "it is protected again, the way it was", item["state"] == "protected", item["state"]
        )

    def _disable(self) -> None:
        self._cli("item", "disable", NAME)
        with self._console("primary", NAME) as console:
            self.claims.check("the machine goes on without us", console.record(30) > 0)
        left = [str(p) for p in (self._hypervisors["secondary"].storage / "secondsite").glob("*/*/*")]
        self.claims.check("disable leaves nothing at the second site", not left, left)

    # -- checks ----------------------------------------------------------------------------------------------

    def _record_loss(self, source: str, target: str, figure: str) -> None:
        """Fail over from source to target and compare what the guest wrote there with where it goes on here."""
        began = time.monotonic()
        job = self._cli("item", "failover", NAME, "--planned")
        seconds = time.monotonic() - began
        images = self._images(source)
        written = self._judge(f"the {source} disks after the shut-down", images)
        with self._console(target, NAME) as console:
            first = console.first_record(60)
        lost = written.last - (first - 1)
        self.claims.figures[f"{figure}_seconds"] = round(seconds, 1)
        self.claims.figures[f"{figure}_records_lost"] = lost
        self.claims.check(f"{figure} loses no record".replace("_", " "), lost == 0, lost)
        self._say(f"   {job['state'].lower()} in {seconds:.1f} s; written {written.last}, goes on at {first}")

    def _judge(self, what: str, disks: Sequence[Path]) -> RecordCheck:
        found = check_records(list(disks))
        self.claims.check(f"{what}: a strict prefix over both disks", found.ok, "; ".join(found.problems[:2]))
        system = check_filesystem(disks[0])
        self.claims.check(f"{what}: its file system is clean", system.ok, "; ".join(system.problems[:2]))
        return found

    def _check_no_delay(self, since: int) -> None:
        points = sorted(self._cli("point", "list", NAME, "--limit", "200"), key=lambda p: p["sequence"])
        times = [datetime.fromisoformat(p["time"]) for p in points if p["sequence"] >= since]
        gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
        worst = max(gaps, default=0.0)
        self.claims.figures["test_failover_longest_cycle_gap_s"] = round(worst, 1)
        self.claims.check(
            "a test delays no cycle by more than an interval", worst <= 2 * INTERVAL_S, f"{worst:.1f} s"
        )

    def _leftovers(self) -> list[str]:
        site = self._hypervisors["secondary"]
        connection = site.connect()
        try:
            left = [domain.name() for domain in connection.listAllDomains()]
        finally:
            connection.close()
        left += [str(path) for path in (site.storage / "secondsite" / "replicas").rglob("*.qcow2")]
        left += [
            str(path) for path in (Path(self._lab["sites"]["secondary"]["node_state"]) / "run").glob("v*")
        ]
        return left

    def _ages(self, seconds: float) -> list[float]:
        """Sample how old the newest sealed point is, as the journal's folder tells it."""
        journal = Journal.open(self._journal("secondary"), writable=False)
        ages, end = [], time.monotonic() + seconds
        ticker = threading.Event()
        while time.monotonic() < end:
            last = journal.status().last
            assert last is not None
            ages.append((datetime.now(UTC) - last.time).total_seconds())
            ticker.wait(0.25)
        return ages

    # -- means -----------------------------------------------------------------------------------------------

    def _chapter(self, title: str, tell: Callable[[], None]) -> None:
        self._say(f"\n== {title}")
        tell()

    def _cli(self, *arguments: str) -> Any:
        """Run a command of the CLI with --json; its progress goes to the terminal."""
        if arguments[1] not in {"list", "show", "protectable"}:
            self._say(f"   $ secondsite {' '.join(arguments)}")
        command = [sys.executable, "-m", "secondsite", "--config", self._lab["config"], *arguments, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
        if done.returncode:
            raise SecondSiteError(
                f"secondsite {' '.join(arguments)} failed with exit code {done.returncode}{_reason(done.stdout)}"
            )
        return json.loads(done.stdout)

    def _extract(self, site: str, sequence: int) -> list[Path]:
        """Get a point's disks with the stand-alone command, which knows nothing but the journal's folder."""
        folder = self._folder / f"point-{site}-{sequence}"
        journal = [str(self._journal(site)), "--sequence", str(sequence)]
        self._cli("journal", "extract", *journal, "--output", str(folder))
        return [folder / f"{disk}.raw" for disk in DISKS]

    def _journal(self, site: str) -> Path:
        return Path(self._lab["sites"][site]["journals"]) / str(self._item()["id"])

    def _item(self) -> Mapping[str, Any]:
        item: Mapping[str, Any] = self._cli("item", "show", NAME)
        return item

    def _counters(self, item: Mapping[str, Any], side: str = "source") -> Mapping[str, Any]:
        report = item["replication"][side] or {}
        counters: Mapping[str, Any] = report.get("counters", {})
        return counters

    def _cycle(self, sequence: int) -> Mapping[str, Any] | None:
        """Return the source's figures of the cycle that sealed the point, once it is the last or gone by."""
        report = self._item()["replication"]["source"] or {}
        for cycle in report.get("cycles", []):
            if cycle["sequence"] == sequence:
                found: Mapping[str, Any] = cycle
                return found
        return None

    def _images(self, site: str) -> list[Path]:
        vms = self._hypervisors[site].connect()
        try:
            root = ET.fromstring(vms.lookupByName(NAME).XMLDesc())  # noqa: S314 - our own libvirt's
            found = {
                disk.find("target").get("dev"): disk.find("source").get("file")  # type: ignore[union-attr]
                for disk in root.iter("disk")
                if disk.find("source") is not None
            }
        finally:
            vms.close()
        return [Path(str(found[disk])) for disk in DISKS]

    @contextmanager
    def _console(self, site: str, name: str) -> Iterator[ConsoleReader]:
        with ConsoleReader(self._hypervisors[site], name) as console:
            yield console

    def _wait(self, holds: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := holds()):
            if time.monotonic() > deadline:
                raise TimeoutExceededError(f"{what}: nothing in {timeout_s:.0f} s")
            time.sleep(0.2)
        return value


def _reason(output: str) -> str:
    """Return what a job that failed says about itself; a command's own error is on the terminal already."""
    try:
        error = json.loads(output)["error"]
        return f": [{error['code']}] {error['message']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _changed_bytes(before: Sequence[Path], after: Sequence[Path]) -> int:
    """Return how many bytes, in 4 KiB blocks, differ between two copies of the same disks."""
    changed = 0
    for old, new in zip(before, after, strict=True):
        with old.open("rb") as a, new.open("rb") as b:
            while (left := a.read(8 * MIB)) or b.peek(1):
                right = b.read(8 * MIB)
                if left != right:
                    x = np.frombuffer(left, np.uint8).reshape(-1, BLOCK)
                    y = np.frombuffer(right, np.uint8).reshape(-1, BLOCK)
                    changed += int((x != y).any(axis=1).sum()) * BLOCK
    return changed


def _mib(count: float) -> str:
    return f"{count / MIB:.1f} MiB"
