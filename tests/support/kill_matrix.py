"""Every operation, with a process killed at each of its steps: what the end state is when nobody helps.

A round takes one guest through all operations: protect, unplanned failover, change of the point, cancel, planned failover, commit,
reverse, all three the other way, disable. In each of them one process is killed with SIGKILL while a chosen task of the job is
under way. All the while somebody looks whether two copies of the guest run.

A guest whose own QEMU was killed may be off in the end: our operation has ended right all the same, and an operator (or
the host's autostart) starts it. So does the matrix, and then the guest must go on with the very next record.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import libvirt

from secondsite.errors import SecondSiteError
from secondsite.lab.records import check_records
from support.kill_bytes import KillBytes
from support.kill_table import NOT_HIT, Cell
from support.kill_victims import Kill, Strike, Victim, runs, strike
from support.lab_story import LabGuest, LabStory, until
from support.wire_meter import WireMeter

JOB_S = 300.0
ABSENT_S = 3.0
"""So long a node is held up for a victim that is not there."""
ACCEPTED = "accepted"
OTHER = {"primary": "secondary", "secondary": "primary"}
ENDED = {"Succeeded", "Failed", "Cancelled"}


@dataclass(frozen=True)
class Operation:
    """One operation of a round: its route, the item's state before and after it, and where the guest runs then.

    `hold`: short tasks, with who does it ("here" is where the guest runs at the beginning) and from when on that node is
    made to wait, so that the kill comes in the middle of the task.
    """

    name: str
    before: str
    after: str
    runs: str
    body: Mapping[str, Any] = field(default_factory=dict)
    hold: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    shift: int = 0
    """So many tasks later than the round says: where an operation comes twice in a round."""


START = "start the replica"
STEP_DOWN = "old side steps down"
UNPLANNED = "unplanned-commit-pending"
ORDER = ("unplanned-failover", "change-point", "cancel", "planned-failover", "commit", "reverse", "disable")


def a_round(older: int, shutdown: str = "try") -> list[Operation]:
    """The operations in their order; the guest is protected and runs at the primary site when they begin."""
    prepared = {STEP_DOWN: ("here", START)}
    demoted = {STEP_DOWN: ("here", ACCEPTED)}
    return [
        Operation(
            "unplanned-failover",
            "protected",
            UNPLANNED,
            "secondary",
            {"shutdown_source": shutdown},
            prepared if shutdown == "try" else demoted,
        ),
        Operation(
            "change-point",
            UNPLANNED,
            UNPLANNED,
            "secondary",
            {"sequence": older},
            {STEP_DOWN: ("there", ACCEPTED)},
        ),
        Operation(
            "cancel",
            UNPLANNED,
            "protected",
            "primary",
            hold={"discard the machine that runs": ("here", ACCEPTED)},
        ),
        *_moved("primary", "secondary", 0),
        *_moved("secondary", "primary", 2),
        Operation(
            "disable",
            "protected",
            "disabled",
            "primary",
            hold={
                "stop and forget at the source": ("here", ACCEPTED),
                "remove at the target": ("there", ACCEPTED),
            },
        ),
    ]


def _moved(old: str, new: str, shift: int) -> list[Operation]:
    commit = {"make the replica stand alone, give up the points": ("here", ACCEPTED)}
    reverse = {"start replication in the other direction": ("here", ACCEPTED)}
    return [
        Operation(
            "planned-failover",
            "protected",
            "commit-pending",
            new,
            hold={STEP_DOWN: ("here", START)},
            shift=shift,
        ),
        Operation("commit", "commit-pending", "committed", new, hold=commit, shift=shift),
        Operation("reverse", "committed", "protected", new, hold=reverse, shift=shift),
    ]


def a_short_round() -> list[Operation]:
    """There, back again and out: the operations of a quick look at the matrix."""
    there = _moved("primary", "secondary", 0)[0]
    back = replace(a_round(0)[2], before=there.after)
    return [there, back, a_round(0)[-1]]


class Broken(AssertionError):
    """The end state is wrong: the round cannot go on."""


class Matrix:
    """Runs rounds on a lab and collects their cells."""

    def __init__(self, lab: LabStory, guest: LabGuest, meter: WireMeter, seed: int = 0) -> None:
        self.lab = lab
        self.guest = guest
        self._bytes = KillBytes(lab, guest, meter)
        self.cells: list[Cell] = []
        self._random = random.Random(seed)
        self._tasks: dict[str, list[str]] = {}
        self._item = ""
        self._crashed: set[str] = set()
        """Where the guest's QEMU was killed, and nobody started it there since."""

    def round(
        self,
        number: int,
        victim: Victim,
        *,
        only: Sequence[str] = (),
        late_s: float = 0.0,
        shutdown: str = "try",
    ) -> None:
        """Run all operations once. In each (or in those that are named) the victim dies at the moment of this number:
        0 is when the operation was accepted, else the number of the task (modulo the operation's tasks), and up to
        `late_s` later.

        Raises:
            Broken: an end state is wrong; its cell says what.
        """
        name = self.guest.name
        self.lab.protect(name)
        self.lab.wait_for_points(name, 2)
        older = self.lab.points(name)[0].sequence
        for operation in a_round(older, shutdown):
            if only and operation.name not in only:
                victim_here, moment = None, 0
            else:
                victim_here, moment = victim, self._moment(operation, number)
            self.operate(operation, victim_here, moment, late_s)

    def operate(
        self, operation: Operation, victim: Victim | None, moment: int = 0, late_s: float = 0.0
    ) -> None:
        """Run one operation, with the kill (or without one), and judge its end state."""
        began = time.monotonic()
        here = "primary" if self.guest.active("primary") else "secondary"
        self._item = self.lab.item(self.guest.name)["id"]
        task, kill, outcome, problems = "-", None, NOT_HIT, list[str]()
        self._bytes.begin()
        with self._watched() as both:
            if victim is None:
                job_id = self._begin(operation)
            else:
                hit = strike(self.lab, self.guest, victim, here, OTHER[here])
                wait = self._random.uniform(0, late_s)
                job_id, moment, task, kill = self._struck(operation, moment, hit, victim, here, wait)
            try:
                job = self._ended(job_id)
                if kill is not None:
                    self._crashed |= {kill.site} - {""}
                    outcome = "done" if job["state"] == "Succeeded" else "rolled back"
                if job["state"] != "Succeeded":
                    problems += self._rolled_back(operation, job, here, kill)
                    job = self._ended(self._begin(operation))
                    if job["state"] != "Succeeded":
                        problems.append(f"failed again: {job['error']}")
                by_hand = operation.runs in self._crashed and self._started_by_hand(operation)
                outcome += ", started by hand" if by_hand else ""
                problems += self._judge(operation, job, by_hand=by_hand)
                problems += self._bytes.problems(kill and kill.victim)
                if (job["result"] or {}).get("base") == "diverged":
                    # Cut while it looked: nobody knows any more that nobody wrote. An operator does, and gives it up.
                    self.lab.cli("point", "drop-diverged", self.guest.name)
                    outcome += ", old disks kept"
                    problems += [] if kill is not None else ["old disks kept though nobody was killed"]
            except (AssertionError, SecondSiteError, libvirt.libvirtError) as error:
                problems.append(f"{type(error).__name__}: {error}")
        problems += both
        if victim is not None:
            seconds = round(time.monotonic() - began, 1)
            cell = Cell(operation.name, moment, task, victim, outcome, seconds, problems)
            cell.changed, cell.resent = self._bytes.changed, self._bytes.resent
            self.cells.append(cell)
        if problems:
            raise Broken(f"{operation.name}: {problems}")

    # -- one operation ---------------------------------------------------------------------------------------

    def _moment(self, operation: Operation, number: int) -> int:
        """Between 0 and how many tasks the operation has, as far as jobs have shown them."""
        tasks = self._tasks.get(operation.name)
        return number + operation.shift if tasks is None else (number + operation.shift) % (len(tasks) + 1)

    def _begin(self, operation: Operation) -> str:
        path = f"/items/{self.guest.name}/{operation.name}"
        return str(self.lab.api.post(path, dict(operation.body))["id"])

    def _job(self, job_id: str) -> Any:
        return self.lab.api.get(f"/jobs/{job_id}")

    def _ended(self, job_id: str) -> Any:
        def ended() -> Any:
            job = self._job(job_id)
            assert job["state"] != "Suspended", job
            return job if job["state"] in ENDED else None

        return until(ended, f"job {job_id} ends", JOB_S)

    def _struck(
        self, operation: Operation, moment: int, hit: Strike, victim: Victim, here: str, wait_s: float
    ) -> tuple[str, int, str, Kill | None]:
        """Begin, and kill at the moment; return the job, what was under way, and who was killed (None: the job was faster)."""
        tasks = self._tasks.get(operation.name, [])
        young = victim is Victim.YOUNG
        wanted = tasks[(moment - 1) % len(tasks)] if tasks and moment else ""
        held = None if young else self._hold(operation, wanted, ACCEPTED, here)
        came: float | None = None
        try:
            job_id = self._begin(operation)
            if moment == 0 and not young:
                return job_id, 0, ACCEPTED, hit()
            while (job := self._job(job_id))["state"] not in ENDED:
                names = [task["name"] for task in job["tasks"]]
                if not names:
                    continue
                tasks = self._tasks.setdefault(operation.name, names)
                wanted = tasks[(moment - 1) % len(tasks)]
                under_way = next(
                    (task["name"] for task in job["tasks"] if task["state"] == "InProgress"), None
                )
                held = held or (None if young else self._hold(operation, wanted, under_way, here))
                if came is None and under_way == wanted:
                    came = time.monotonic()
                waited = -1.0 if came is None else time.monotonic() - came
                if under_way is not None and (young or waited >= wait_s):
                    kill = hit()
                    if kill is not None:
                        return job_id, names.index(under_way) + 1, under_way, kill
                missing = held is not None and waited > wait_s + ABSENT_S
                if missing or (not young and waited >= wait_s and under_way != wanted):
                    break  # it was not there while the task ran
            return job_id, moment, "-", None
        finally:
            if held is not None:
                self._go_on(held)

    def _hold(self, operation: Operation, wanted: str, under_way: str | None, here: str) -> str | None:
        """Make the node wait that does the wanted task, if that is a short one and it is time; return its site."""
        side, since = operation.hold.get(wanted, ("", ""))
        if not side or since != under_way:
            return None
        site = here if side == "here" else OTHER[here]
        self.lab.signal(site, signal.SIGSTOP)
        return site

    def _go_on(self, site: str) -> None:
        with suppress(ProcessLookupError, AssertionError):  # killed meanwhile, and started again
            self.lab.signal(site, signal.SIGCONT)

    # -- judging ---------------------------------------------------------------------------------------------

    def _rolled_back(self, operation: Operation, job: Any, here: str, kill: Kill | None) -> list[str]:
        """The job failed: everything must be as before."""
        if kill is None:
            return [f"{operation.name} failed though nobody was killed: {job['error']}"]
        item = self.lab.item(self.guest.name)
        if item["state"] not in {operation.before, "disable-failed", "point-change-failed"}:
            return [f"failed ({job['error']}), and the item is {item['state']}, not {operation.before}"]
        died_here = kill.victim.is_machine and kill.site == here
        if item["state"] != "point-change-failed" and not died_here and not self.guest.active(here):
            return [f"failed ({job['error']}), and it runs nowhere"]
        return []

    def _started_by_hand(self, operation: Operation) -> bool:
        """The guest's own QEMU was killed where it belongs now. If it is off, start it as an operator does: one that was off
        when it was to be shut down is not started either when it comes back there.
        """
        self._crashed.discard(operation.runs)
        # libvirt notices the end of a QEMU some time after it.
        with suppress(AssertionError):
            until(lambda: not self.guest.active(operation.runs), "it is off", 3)
        if self.guest.active(operation.runs):
            return False
        left = check_records(self.guest.disks(operation.runs))
        assert left.ok, f"its disks after the kill: {left.problems}"
        self.guest.domain(operation.runs).create()
        with self.guest.console(operation.runs) as console:
            first = console.first_record(90)
        assert first == left.last + 1, f"its disks ended with {left.last}, and it went on with {first}"
        return True

    def _judge(self, operation: Operation, job: Any, *, by_hand: bool) -> list[str]:
        """What must hold after the operation."""
        name, problems, other = self.guest.name, list[str](), OTHER[operation.runs]
        if not self.guest.active(operation.runs):
            problems.append(f"it does not run at the {operation.runs} site")
        if self.guest.active(other):
            problems.append(f"it runs at the {other} site, too")
        if operation.after == "disabled":
            problems += self._left_behind()
        if problems or operation.after == "disabled":
            return problems
        item = until(lambda: self.lab.item(name), "the item")
        if item["state"] != operation.after:
            problems.append(f"the item is {item['state']}, not {operation.after}")
        if operation.after != "protected":
            self._bytes.end()
        if operation.name == "planned-failover":
            problems += self._goes_on_after(check_records(self.guest.disks(other)), operation.runs, by_hand)
        elif operation.after == UNPLANNED:
            disks = self.lab.extract(name, int(job["result"]["point"]["sequence"]))
            problems += self._goes_on_after(check_records(disks), operation.runs, by_hand)
            for disk in disks:
                disk.unlink()
        if operation.after == "protected":
            sequence = self.lab.wait_for_points(name, site=other, timeout_s=120)
            self._bytes.end()  # at once: the next cycle is some seconds away
            self.lab.check_point(name, sequence, other)
        return problems

    def _left_behind(self) -> list[str]:
        """The protection has ended: what is left of ours on both sides, but for images that somebody has or was left."""
        left = []
        for site in OTHER:
            facts = self.lab.facts["sites"][site]
            for folder in (Path(facts["node_state"]) / "items", Path(facts["journals"])):
                left += [str(path) for path in folder.glob(f"{self._item}*")]
        left += [each.getName() for each in self.guest.domain("primary").listAllCheckpoints()]
        return [f"left behind: {left}"] if left else []

    def _goes_on_after(self, left: Any, site: str, by_hand: bool) -> list[str]:
        """The guest went on with the record after those; one that was started a second time, later."""
        if not left.ok:
            return [f"what it started from: {left.problems}"]
        with self.guest.console(site) as console:
            first = console.first_record(90)
        right = first > left.last if by_hand else first == left.last + 1
        return [] if right else [f"it should go on after {left.last} and went on with {first}"]

    @contextmanager
    def _watched(self) -> Iterator[list[str]]:
        """Look all the while whether both sides run the guest; what was seen is in the list afterwards."""
        seen: list[str] = []
        end = threading.Event()
        hypervisors = {site: self.lab.hypervisor(site) for site in OTHER}
        connections = {site: hypervisor.connect() for site, hypervisor in hypervisors.items()}

        def look() -> None:
            while not end.wait(0.05):
                if all(runs(connection, self.guest.name) for connection in connections.values()):
                    seen.append("two copies ran at the same time")
                    return
                for site, connection in list(connections.items()):
                    if not connection.isAlive():
                        with suppress(libvirt.libvirtError):  # its libvirtd was killed, and is not back yet
                            connections[site] = hypervisors[site].connect()

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield seen
        finally:
            end.set()
            watcher.join()
            for connection in connections.values():
                with suppress(libvirt.libvirtError):
                    connection.close()
