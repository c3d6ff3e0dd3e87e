"""The demo's worst day: the first site goes away without a word, and comes back later with disks of its own.

What the second site comes up with is told by the machine's own records: exactly the point's, and nothing after it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from secondsite import processes
from secondsite.lab import processes as lab_processes
from secondsite.lab import sites
from secondsite.lab.stage import NAME, Stage, changed_bytes, mib
from secondsite.model.units import MIB

POINTS_BACK: Final = 3


class Disaster:
    """The chapters, in the order of their methods; the machine is protected and runs at the first site when they begin."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._latest = 0

    def lose_the_first_site(self) -> None:
        """Cut the power of the first site's host: its node, its libvirtd and its guest."""
        stage = self._stage
        points = stage.wait(lambda: self._points(POINTS_BACK + 1), "some points")
        self._older = int(points[POINTS_BACK]["sequence"])
        home = stage.hypervisors["primary"]
        connection = home.connect()
        try:
            connection.lookupByName(NAME).setAutostart(1)  # as administrators have it
        finally:
            connection.close()
        self._images = stage.images("primary")
        node = processes.find(stage.lab.pid_file("primary"))
        home.stop()
        assert node is not None
        killed = lab_processes.Process.of(node.pid)
        lab_processes.kill([killed] if killed is not None else [])
        # What a boot of the host empties.
        (stage.lab.node_state("primary") / "run" / "booted").unlink(missing_ok=True)
        self._written = stage.judge("the disks that the first site was left with", self._images).last
        stage.say(f"   nothing of it runs; its disks end with record {self._written}")

    def fail_over_to_latest(self) -> None:
        """Take over with what the second site has."""
        stage = self._stage
        began = time.monotonic()
        job = stage.cli("item", "unplanned-failover", NAME, "--shutdown-source", "no")
        seconds = time.monotonic() - began
        self._latest = self._comes_up(job, "unplanned failover to the latest point")
        first = self._first
        lost = self._written - (first - 1)
        stage.claims.figures["unplanned_failover_seconds"] = round(seconds, 1)
        stage.claims.figures["unplanned_failover_record"] = first - 1
        stage.claims.figures["unplanned_failover_records_lost"] = lost
        stage.claims.check(
            "an unplanned failover loses what was written since its point only", lost >= 0, lost
        )
        stage.say(
            f"   runs after {seconds:.1f} s, from record {first - 1}: {lost} records younger than the point"
        )

    def change_the_point(self) -> None:
        """Go to an older point, and back to the latest."""
        stage = self._stage
        job = stage.cli("item", "change-point", NAME, "--point", str(self._older))
        self._comes_up(job, "change to an older point")
        stage.claims.figures["older_point_record"] = self._first - 1
        stage.say(f"   the older point {self._older} came up with record {self._first - 1}")
        job = stage.cli("item", "change-point", NAME, "--point", str(self._latest))
        self._comes_up(job, "change back to the latest point")
        stage.say(f"   the latest point {self._latest} again, with record {self._first - 1}")

    def commit(self) -> None:
        """Decide for it."""
        self._stage.cli("item", "commit", NAME)

    def first_site_returns(self) -> None:
        """The host boots with its old guest set to start with it: it must not run."""
        stage = self._stage
        home = stage.hypervisors["primary"]
        home.start()
        if home.has_networks:
            home.define_networks()
        sites.start_node(stage.lab, "primary")
        stage.wait(lambda: not stage.item()["standing"], "the old side steps down")
        runs = [domain for domain in _active(home) if domain == NAME]
        stage.claims.check("the old side does not run its copy when it is back", not runs, runs)

    def reverse(self) -> None:
        """Replicate back: only what differs is shipped, and what the old side alone had is kept."""
        stage = self._stage
        stage.cli("item", "reverse", NAME)
        points = stage.cli("point", "list", NAME, "--limit", "10000")
        kept = [point for point in points if point["kind"] == "diverged"]
        stage.claims.check("the old side's own writes are kept as a point", len(kept) == 1, len(kept))
        diverged = int(kept[0]["sequence"])
        first = min(int(point["sequence"]) for point in points if int(point["sequence"]) > diverged)
        # Before anything that takes long: the source tells of its last dozen cycles only.
        cycle: Any = stage.wait(lambda: stage.cycle(first), "the first cycle's figures")
        old = stage.extract("primary", diverged)
        found = stage.judge("the point that the old side's writes are kept as", old)
        stage.claims.check(
            "it ends with the last record that the old side wrote", found.last == self._written, found.last
        )
        new = stage.extract("primary", first)
        stage.judge("the first point after the disaster in reverse", new)
        self._figures(int(cycle["bytes_shipped"]), changed_bytes(old, new))

    def _figures(self, shipped: int, changed: int) -> None:
        stage = self._stage
        stage.claims.figures["reverse_after_disaster_bytes_diverged"] = changed
        stage.claims.figures["reverse_after_disaster_bytes_shipped"] = shipped
        stage.claims.check(
            "the reversal after a disaster ships at most 1.1 x what differs plus 1 MiB",
            shipped <= 1.1 * changed + MIB,
            f"{shipped} of {changed} bytes",
        )
        stage.say(f"   {mib(shipped)} shipped for {mib(changed)} that differ")

    # -- means -----------------------------------------------------------------------------------------------

    def _points(self, least: int) -> list[Any] | None:
        """The newest points, newest first, once there are so many."""
        points = self._stage.cli("point", "list", NAME, "--limit", str(least))
        return points if len(points) >= least else None

    def _comes_up(self, job: Any, what: str) -> int:
        """Compare the first record of the machine with the last one of its point; return the point."""
        stage = self._stage
        point = int(job["result"]["point"]["sequence"])
        with stage.console("secondary", NAME) as console:
            self._first = console.first_record(60)
        disks: list[Path] = stage.extract("secondary", point)
        found = stage.judge(f"{what}: point {point}", disks)
        stage.claims.check(
            f"{what}: it goes on right after its point",
            self._first == found.last + 1,
            (self._first, found.last),
        )
        return point


def _active(hypervisor: Any) -> list[str]:
    connection = hypervisor.connect()
    try:
        return [domain.name() for domain in connection.listAllDomains() if domain.isActive()]
    finally:
        connection.close()
