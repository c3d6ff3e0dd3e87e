"""The demo: one machine's story on a lab, each claim checked against the guest's own records.

The story is told through the command `secondsite`, as a newcomer would type it. The checks do not believe the product:
they read disks and consoles with `records`, `filesystem` and `console`, which share no code with it. A claim that does
not hold ends the demo with a failure, after the table.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from secondsite.journal import Journal
from secondsite.lab import sites
from secondsite.lab.disaster import Disaster
from secondsite.lab.guest.builder import GuestBuilder
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.stage import NAME, Claims, Say, Stage, changed_bytes, mib
from secondsite.model.units import GIB, MIB

RPO_WATCH_S: Final = 45.0
INTERVAL_S: Final = 5.0


class Demo:
    """See the module's docstring. `say` prints a line; `watch_s`: how long the RPO is sampled.

    `patience` multiplies the times within which things are claimed to happen: 1 is what the product promises, more is for a
    machine that has other things to do.
    """

    def __init__(
        self, folder: Path, say: Say, *, watch_s: float = RPO_WATCH_S, patience: float = 1.0
    ) -> None:
        self._stage = Stage(folder, say)
        self._watch_s = watch_s
        self._patience = patience
        self.claims = self._stage.claims

    def run(self) -> Claims:
        """Tell the story; the lab is ended in any case."""
        started = time.monotonic()
        try:
            self._stage.chapter("Two sites on this machine", self._stage.set_up)
            self._stage.chapter("A machine that writes", self._start_guest)
            self._stage.chapter("Protect it", self._protect)
            self._stage.chapter(f"Watch it for {self._watch_s:.0f} s", self._watch)
            self._stage.chapter("Test the failover", self._test)
            self._stage.chapter("Fail over, as planned", self._fail_over)
            self._stage.chapter("Commit, and replicate the other way", self._reverse)
            self._stage.chapter("Fail back", self._fail_back)
            disaster = Disaster(self._stage)
            self._stage.chapter("The first site is gone", disaster.lose_the_first_site)
            self._stage.chapter("Fail over without it", disaster.fail_over_to_latest)
            self._stage.chapter("Try an older point, and go back", disaster.change_the_point)
            self._stage.chapter("Commit", disaster.commit)
            self._stage.chapter("The first site is back", disaster.first_site_returns)
            self._stage.chapter("Replicate back what differs", disaster.reverse)
            self._stage.chapter("Stop protecting it", self._disable)
            self.claims.figures["seconds_in_all"] = round(time.monotonic() - started, 1)
        finally:
            self._stage.say("\n== Clean up")
            if (self._stage.folder / "lab.json").exists():
                sites.down(self._stage.folder, purge=True)
        return self.claims

    # -- chapters --------------------------------------------------------------------------------------------

    def _start_guest(self) -> None:
        home = self._stage.hypervisors["primary"]
        files = GuestBuilder().build().copy_to(self._stage.folder / "boot")
        images = [home.own(image) for image in create_disks(home.storage, NAME, count=2, size=GIB)]
        connection = home.connect()
        try:
            networks = ["lab-prod"] if home.has_networks else []
            xml = domain_xml(NAME, files, images, rate=100, networks=networks)
            connection.defineXML(xml).create()
        finally:
            connection.close()
        with self._stage.console("primary", NAME) as console:
            self._stage.say(f"   the guest runs and has written record {console.record(60)}")
        self._stage.wait(
            lambda: any(vm["name"] == NAME for vm in self._stage.cli("item", "protectable")), "the inventory"
        )

    def _protect(self) -> None:
        began = time.monotonic()
        job = self._stage.cli("item", "protect", NAME)
        seconds = time.monotonic() - began
        counters: dict[str, Any] = {}

        def reported() -> bool:
            # The job ends when the target has the point; the source reports what that took a little later.
            counters.update(self._stage.counters(self._stage.item()))
            return "bytes_changed" in counters

        self._stage.wait(reported, "the source's figures")
        self.claims.figures["initial_replication_seconds"] = round(seconds, 1)
        self.claims.figures["initial_replication_bytes_changed"] = counters["bytes_changed"]
        self.claims.figures["initial_replication_bytes_shipped"] = counters["bytes_shipped"]
        self.claims.check("the initial replication succeeds", job["state"] == "Succeeded", job["state"])
        self._stage.say(f"   protected after {seconds:.1f} s, {mib(counters['bytes_shipped'])} on the wire")

    def _watch(self) -> None:
        ages = self._ages(self._watch_s)
        points = self._stage.cli("point", "list", NAME, "--limit", "10000")
        self.claims.figures["rpo_median_s"] = round(statistics.median(ages), 1)
        self.claims.figures["rpo_worst_s"] = round(max(ages), 1)
        self.claims.figures["points_kept"] = len(points)
        self.claims.check(
            "the newest point is never older than two intervals",
            max(ages) <= 2 * INTERVAL_S * self._patience,
            f"{max(ages):.1f} s",
        )
        self._stage.say(
            f"   RPO {statistics.median(ages):.1f} s (median), {max(ages):.1f} s (worst); {len(points)} points"
        )

    def _test(self) -> None:
        before = self._stage.cli("point", "list", NAME, "--limit", "1")[0]["sequence"]
        began = time.monotonic()
        job = self._stage.cli("item", "test-failover", NAME)
        running = time.monotonic() - began
        with self._stage.console("secondary", f"{NAME}-test") as console:
            first = console.first_record(60)
            to_first = time.monotonic() - began
        point = int(job["result"]["sequence"])
        disks = self._stage.extract("secondary", point)
        found = self._stage.judge("the test's point", disks)
        self.claims.check("the test's machine goes on right after its point", first == found.last + 1, first)
        self.claims.figures["test_failover_seconds_to_running"] = round(running, 1)
        self.claims.figures["test_failover_seconds_to_first_record"] = round(to_first, 1)
        self._stage.say(
            f"   {NAME}-test runs after {running:.1f} s from point {point}; its first record is {first}"
        )
        self._stage.cli("item", "cleanup-test", NAME)
        after = self._stage.wait(
            lambda: [
                p
                for p in self._stage.cli("point", "list", NAME, "--limit", "200")
                if p["sequence"] > before + 2
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
        there = self._stage.hypervisors["secondary"]
        point = int(self._stage.cli("item", "show", NAME)["failover"]["sequence"])
        before = self._stage.extract("secondary", point)  # the journal goes with the commit
        with self._stage.console("secondary", NAME) as console:
            console.record(30)
        self._stage.cli("item", "commit", NAME)
        began = time.monotonic()
        self._stage.cli("item", "reverse", NAME)
        first = min(p["sequence"] for p in self._stage.cli("point", "list", NAME) if p["sequence"] > point)
        cycle = self._stage.wait(lambda: self._stage.cycle(first), "the first cycle's figures")
        self._stage.say(f"   replicates from {there.name} to primary after {time.monotonic() - began:.1f} s")
        after = self._stage.extract("primary", first)
        changed = changed_bytes(before, after)
        self._stage.judge("the first point in reverse", after)
        shipped = int(cycle["bytes_shipped"])
        self.claims.figures["reverse_bytes_changed"] = changed
        self.claims.figures["reverse_bytes_shipped"] = shipped
        self.claims.check(
            "reverse replication ships at most 1.1 x what changed plus 8 MiB",
            shipped <= 1.1 * changed + 8 * MIB,
            f"{shipped} of {changed} bytes",
        )
        self._stage.say(f"   {mib(shipped)} shipped for {mib(changed)} changed")

    def _fail_back(self) -> None:
        self._record_loss("secondary", "primary", "failback")
        self._stage.cli("item", "commit", NAME)
        self._stage.cli("item", "reverse", NAME)
        item = self._stage.cli("item", "show", NAME)
        self.claims.check(
            "it is protected again, the way it was", item["state"] == "protected", item["state"]
        )

    def _disable(self) -> None:
        self._stage.cli("item", "disable", NAME)
        with self._stage.console("secondary", NAME) as console:
            self.claims.check("the machine goes on without us", console.record(30) > 0)
        left = [str(p) for p in (self._stage.hypervisors["primary"].storage / "secondsite").glob("*/*/*")]
        self.claims.check("disable leaves nothing at the other site", not left, left)

    # -- checks ----------------------------------------------------------------------------------------------

    def _record_loss(self, source: str, target: str, figure: str) -> None:
        """Fail over from source to target and compare what the guest wrote there with where it goes on here."""
        began = time.monotonic()
        job = self._stage.cli("item", "failover", NAME, "--planned")
        seconds = time.monotonic() - began
        images = self._stage.images(source)
        written = self._stage.judge(f"the {source} disks after the shut-down", images)
        with self._stage.console(target, NAME) as console:
            first = console.first_record(60)
        lost = written.last - (first - 1)
        self.claims.figures[f"{figure}_seconds"] = round(seconds, 1)
        self.claims.figures[f"{figure}_records_lost"] = lost
        self.claims.check(f"{figure} loses no record".replace("_", " "), lost == 0, lost)
        self._stage.say(
            f"   {job['state'].lower()} in {seconds:.1f} s; written {written.last}, goes on at {first}"
        )

    def _check_no_delay(self, since: int) -> None:
        points = sorted(self._stage.cli("point", "list", NAME, "--limit", "200"), key=lambda p: p["sequence"])
        times = [datetime.fromisoformat(p["time"]) for p in points if p["sequence"] >= since]
        gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
        worst = max(gaps, default=0.0)
        self.claims.figures["test_failover_longest_cycle_gap_s"] = round(worst, 1)
        self.claims.check(
            "a test delays no cycle by more than an interval",
            worst <= 2 * INTERVAL_S * self._patience,
            f"{worst:.1f} s",
        )

    def _leftovers(self) -> list[str]:
        site = self._stage.hypervisors["secondary"]
        connection = site.connect()
        try:
            left = [domain.name() for domain in connection.listAllDomains()]
        finally:
            connection.close()
        left += [str(path) for path in (site.storage / "secondsite" / "replicas").rglob("*.qcow2")]
        left += [
            str(path)
            for path in (Path(self._stage.facts["sites"]["secondary"]["node_state"]) / "run").glob("v*")
        ]
        return left

    def _ages(self, seconds: float) -> list[float]:
        """Sample how old the newest sealed point is, as the journal's folder tells it."""
        journal = Journal.open(self._stage.journal("secondary"), writable=False)
        ages, end = [], time.monotonic() + seconds
        ticker = threading.Event()
        while time.monotonic() < end:
            last = journal.status().last
            assert last is not None
            ages.append((datetime.now(UTC) - last.time).total_seconds())
            ticker.wait(0.25)
        return ages
