"""Every operation, with a process killed at each of its steps: what the end state is when nobody helps.

A round takes one guest through all operations: protect, unplanned failover, change of the point, cancel, planned failover, commit,
reverse, back again, disable. In each of them one process is killed with SIGKILL as soon as a chosen task of the job is under
way, and started again, as a supervisor would. All the while somebody looks whether two copies of the guest run.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import libvirt

from secondsite import processes
from secondsite.errors import SecondSiteError
from secondsite.lab.records import check_records
from support.lab_story import LabGuest, LabStory, until

JOB_S = 240.0


class Victim(StrEnum):
    """Which process dies."""

    SERVICE = "service"
    SOURCE = "node that runs it"
    TARGET = "node of the other side"
    VIEW = "view server"


@dataclass(frozen=True)
class Operation:
    """One operation of a round: its command, the item's state before and after it, and where the guest runs then."""

    name: str
    command: tuple[str, ...]
    before: str
    after: str
    runs: str
    kills: bool = True
    """Whether this place in the round is one where processes are killed."""


def a_round(name: str, older: int) -> list[Operation]:
    """The operations in their order; the guest is protected and runs at the primary site when they begin."""
    planned = ("item", "failover", name, "--planned")
    unplanned = ("item", "unplanned-failover", name, "--shutdown-source", "try")
    pending = "unplanned-commit-pending"
    return [
        Operation("unplanned-failover", unplanned, "protected", pending, "secondary"),
        Operation(
            "change-point",
            ("item", "change-point", name, "--point", str(older)),
            pending,
            pending,
            "secondary",
        ),
        Operation("cancel", ("item", "cancel", name), pending, "protected", "primary"),
        Operation("planned-failover", planned, "protected", "commit-pending", "secondary"),
        Operation("commit", ("item", "commit", name), "commit-pending", "committed", "secondary"),
        Operation("reverse", ("item", "reverse", name), "committed", "protected", "secondary"),
        Operation("failback", planned, "protected", "commit-pending", "primary", kills=False),
        Operation("commit", ("item", "commit", name), "commit-pending", "committed", "primary", kills=False),
        Operation("reverse", ("item", "reverse", name), "committed", "protected", "primary", kills=False),
        Operation("disable", ("item", "disable", name), "protected", "disabled", "primary"),
    ]


@dataclass
class Cell:
    """What became of one operation with one kill in it."""

    operation: str
    task: str
    victim: Victim
    outcome: str
    seconds: float
    problems: list[str] = field(default_factory=list)


class Matrix:
    """Runs rounds on a lab and collects their cells. `tasks`: the names of each operation's tasks, as jobs showed them."""

    def __init__(self, lab: LabStory, guest: LabGuest) -> None:
        self.lab = lab
        self.guest = guest
        self.cells: list[Cell] = []
        self.tasks: dict[str, list[str]] = {}

    def round(self, number: int, victim: Victim, only: Sequence[str] | None = None) -> None:
        """Run all operations once; in each the victim dies at the task with this number (modulo the operation's tasks)."""
        name = self.guest.name
        self.lab.protect(name)
        self.lab.wait_for_points(name, 2)
        older = self.lab.points(name)[0].sequence
        for operation in a_round(name, older):
            if operation.kills and (only is None or operation.name in only):
                self._with_kill(operation, number, victim)
            else:
                self._plain(operation)

    # -- one operation ---------------------------------------------------------------------------------------

    def _plain(self, operation: Operation) -> list[str]:
        with self._watched() as both:
            job = self._ended(self._begin(operation))
        problems = list(both)
        if job["state"] != "Succeeded":
            problems.append(f"{operation.name} ended {job['state']}: {job['error']}")
        problems += self._judge(operation)
        assert not problems, problems
        return problems

    def _with_kill(self, operation: Operation, number: int, victim: Victim) -> None:
        began = time.monotonic()
        source, target = self._sides(operation)
        parts = {Victim.SERVICE: "service", Victim.SOURCE: source, Victim.TARGET: target}
        with self._watched() as both:
            job_id = self._begin(operation)
            task = self._wait_for_task(operation, job_id, number)
            killed = task is not None and self._kill(victim, parts.get(victim), (source, target))
            job = self._ended(job_id)
        problems = list(both)
        outcome = "not hit"
        if killed:
            outcome = "done" if job["state"] == "Succeeded" else "rolled back"
        if job["state"] != "Succeeded":
            problems += self._rolled_back(operation, job)
            outcome += ", done when asked again"
        problems += self._judge(operation)
        seconds = round(time.monotonic() - began, 1)
        self.cells.append(Cell(operation.name, task or "-", victim, outcome, seconds, problems))

    def _rolled_back(self, operation: Operation, job: Any) -> list[str]:
        """The job failed: everything must be as before, and the same again must succeed."""
        item = self.lab.item(self.guest.name)
        if item["state"] not in {operation.before, "disable-failed", "point-change-failed"}:
            return [f"failed ({job['error']}), and the item is {item['state']}, not {operation.before}"]
        job = self._ended(self._begin(operation))
        return [] if job["state"] == "Succeeded" else [f"failed again: {job['error']}"]

    def _judge(self, operation: Operation) -> list[str]:
        """What must hold after the operation."""
        name, problems = self.guest.name, []
        other = {"primary": "secondary", "secondary": "primary"}[operation.runs]
        if not self.guest.active(operation.runs):
            problems.append(f"it does not run at the {operation.runs} site")
        if self.guest.active(other):
            problems.append(f"it runs at the {other} site, too")
        if operation.after == "disabled":
            return problems
        item = until(lambda: self.lab.item(name), "the item")
        if item["state"] != operation.after:
            problems.append(f"the item is {item['state']}, not {operation.after}")
        if operation.name in {"planned-failover", "failback"}:
            problems += self._nothing_lost(other, operation.runs)
        if operation.after == "protected":
            journal = {"primary": "secondary", "secondary": "primary"}[operation.runs]
            sequence = self.lab.wait_for_points(name, site=journal, timeout_s=120)
            self.lab.check_point(name, sequence, journal)
        return problems

    def _nothing_lost(self, old: str, new: str) -> list[str]:
        left = check_records(self.guest.disks(old))
        with self.guest.console(new) as console:
            first = console.first_record(90)
        if not left.ok:
            return [f"the old side's disks: {left.problems}"]
        return [] if first == left.last + 1 else [f"it ended with {left.last} and went on with {first}"]

    # -- means -----------------------------------------------------------------------------------------------

    def _sides(self, operation: Operation) -> tuple[str, str]:
        """The site whose node runs the guest when the operation begins, and the other one."""
        here = "primary" if self.guest.active("primary") else "secondary"
        return here, {"primary": "secondary", "secondary": "primary"}[here]

    def _begin(self, operation: Operation) -> str:
        return str(self.lab.cli(*operation.command, "--no-wait")["id"])

    def _job(self, job_id: str) -> Any:
        return self.lab.api.get(f"/jobs/{job_id}")

    def _ended(self, job_id: str) -> Any:
        def ended() -> Any:
            job = self._job(job_id)
            assert job["state"] != "Suspended", job
            return job if job["state"] in {"Succeeded", "Failed", "Cancelled"} else None

        return until(ended, f"job {job_id} ends", JOB_S)

    def _wait_for_task(self, operation: Operation, job_id: str, number: int) -> str | None:
        """Return the name of the task once it is under way; None if the job was faster than we look."""
        while True:
            job = self._job(job_id)
            names = [task["name"] for task in job["tasks"]]
            known = self.tasks.setdefault(operation.name, [])
            known += [name for name in names if name not in known]
            if names:
                task = job["tasks"][number % len(names)]
                if task["state"] == "InProgress":
                    return str(task["name"])
            if job["state"] in {"Succeeded", "Failed", "Cancelled"}:
                return None
            time.sleep(0.005)

    def _kill(self, victim: Victim, part: str | None, sites: Sequence[str]) -> bool:
        if part is not None:
            self.lab.kill(part)
            self.lab.start(part)
            return True
        for site in sites:
            folder = Path(self.lab.facts["sites"][site]["node_state"]) / "run"
            for pid_file in folder.glob("v*.pid"):
                view = processes.find(pid_file)
                if view is not None:
                    with suppress(ProcessLookupError):
                        os.kill(view.pid, signal.SIGKILL)
                        return True
        return False

    @contextmanager
    def _watched(self) -> Iterator[list[str]]:
        """Look all the while whether both sides run the guest; what was seen is in the list afterwards."""
        seen: list[str] = []
        end = threading.Event()
        connections = [self.lab.hypervisor(site).connect() for site in ("primary", "secondary")]

        def look() -> None:
            while not end.wait(0.05):
                if all(_runs(connection, self.guest.name) for connection in connections):
                    seen.append("two copies ran at the same time")
                    return

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield seen
        finally:
            end.set()
            watcher.join()
            for connection in connections:
                connection.close()


def _runs(connection: libvirt.virConnect, name: str) -> bool:
    try:
        return bool(connection.lookupByName(name).state()[0] == libvirt.VIR_DOMAIN_RUNNING)
    except (libvirt.libvirtError, SecondSiteError):
        return False


def table(cells: Sequence[Cell]) -> str:
    """The cells as a table of Markdown: a row per operation and task, a column per victim."""
    rows: dict[tuple[str, str], dict[Victim, str]] = {}
    for cell in cells:
        text = cell.outcome if not cell.problems else "**WRONG**: " + "; ".join(cell.problems)
        if cell.outcome != "not hit":
            rows.setdefault((cell.operation, cell.task), {})[cell.victim] = text
    lines = [
        "| operation | task under way | " + " | ".join(victim.value for victim in Victim) + " |",
        "|---|---|" + "---|" * len(Victim),
    ]
    lines += [
        f"| {operation} | {task} | " + " | ".join(found.get(victim, "") for victim in Victim) + " |"
        for (operation, task), found in rows.items()
    ]
    return "\n".join(lines)
