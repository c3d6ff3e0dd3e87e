"""A walk over the states of a protected item on a real guest: what must be tried is read off the state machine itself.

`Walk.do` asks for every operation that the present situation refuses, then runs the allowed one and holds the outcome
against the table; `do_both` begins a second one amid the first. Both nodes are held still in states that would pass by
themselves, so that what is refused and allowed there can be asked for without a race. What was seen is gathered in `Seen`;
at the end of each walk it is compared with the share of the table that is that walk's (operation_shares).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import libvirt

from secondsite.errors import SecondSiteError
from secondsite.lab.records import check_records
from secondsite.model.item import (
    Event,
    ItemState,
    Operation,
    TestState,
    advance,
    advance_test,
    begin,
    refusal,
)
from support.lab_story import MIB, LabGuest, LabStory, tls, until
from support.operation_shares import BUSY, BUSY_TESTS, Seen, Share, Situation, Tried, settled

TEST_ONLY: Final = frozenset({Operation.TEST_FAILOVER, Operation.CLEANUP_TEST})
SITES: Final = ("primary", "secondary")
SLOW_S: Final = 240.0
"""How long an operation may take on a machine that is far slower than ours."""
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class Walk:
    """One guest and its item, led from state to state."""

    def __init__(self, lab: LabStory, guest: LabGuest) -> None:
        self.lab, self.guest, self.seen = lab, guest, Seen()
        self.name = guest.name
        self._ref = ""
        self._uuid = guest.domain("primary").UUIDString()
        self._points: dict[str, int] = {}
        self._test = ""
        self._plain = httpx.Client(
            base_url=f"{lab.facts['url']}/api/v1/",
            headers={"Authorization": f"Bearer {lab.facts['token']}"},
            verify=tls(),
            timeout=60,
            trust_env=False,
        )
        """Asks past the client, which does not tell the status."""

    # -- where it is

    @property
    def item(self) -> Any:
        return self.lab.item(self._ref)

    def situation(self) -> Situation:
        item = self.item
        return ItemState(item["state"]), TestState(item["test_state"])

    def is_in(self, state: ItemState, test: TestState = TestState.NONE) -> None:
        assert self.situation() == (state, test)

    # -- asking

    def protect(self, meanwhile: Callable[[], object] | None = None) -> Any:
        """Begin to protect the guest where it is at home, doing this before the nodes can begin; return the job."""
        api = self.lab.api
        until(
            lambda: any(
                row["vm"] == self._uuid and row["ready"] and all(disk["size"] for disk in row["disks"])
                for row in api.get("/protectable-items")
            ),
            f"{self.name} in the inventory",
            SLOW_S,
        )
        with self._nodes_held():
            job = api.post("/items", {"vm": self._uuid, "name": self.name})
            self._ref = api.get(f"/items/{self.name}")["id"]
            self.ask_refused()
            if meanwhile is not None:
                meanwhile()
        return job

    def protected(self) -> int:
        """Protect it, to the end; return the first point."""
        job = self._ended(self.protect())
        assert job["state"] == "Succeeded", job
        self.is_in(ItemState.PROTECTED)
        return int(job["result"]["point"]["sequence"])

    def protect_in_vain(self) -> None:
        """Protect it while something else lies where its journal must go."""
        planted: list[Path] = []

        def plant() -> None:
            planted.append(self.lab.journal(self.name))
            planted[0].write_bytes(b"somebody's")

        job = self._ended(self.protect(plant))
        assert job["state"] == "Failed", job
        self.is_in(ItemState.ENABLE_FAILED)
        for path in planted:
            path.unlink()

    def do(self, operation: Operation, event: Event = Event.SUCCEEDED, **body: Any) -> Any:
        """Run an operation that is allowed here; it must end by this event as the table says. Returns its job."""
        before = self.situation()
        self._note()
        begun = begin(*before, operation)
        with self._nodes_held(begun):
            job = self._post(operation, body)
            if not settled(begun):
                assert self.situation() == begun, (operation, before)
                self.ask_refused()
        return self._judge(begun, [(*before, operation)], [job], event)[0]

    def do_both(self, first: Operation, second: Operation, **body: Any) -> tuple[Any, Any]:
        """Begin the second operation while the first is under way, for sure; one of them is a test's.

        The other one gets `body`. Both must succeed; returns both jobs.
        """
        before = self.situation()
        self._note()
        amid = begin(*before, first)
        assert not settled(amid), (first, before)
        begun = begin(*amid, second)
        with self._nodes_held(amid):
            one = self._post(first, {} if first in TEST_ONLY else body)
            assert self.situation() == amid, (first, before)
            self.ask_refused()
            two = self._post(second, {} if second in TEST_ONLY else body)
            assert self.situation() == begun, (second, amid)
            self.ask_refused()
            # Its order is the first in the node's queue then.
            until(lambda: any(task["started"] for task in self._job(one)["tasks"]), f"{first} began", 60)
        one, two = self._judge(begun, [(*before, first), (*amid, second)], [one, two])
        return one, two

    def _note(self) -> None:
        """Look around before anything is asked for."""
        self.ask_refused()
        for site in SITES:
            with suppress(SecondSiteError):
                self._points[site] = max(
                    (point.sequence for point in self.lab.points(self.name, site)), default=0
                )

    def _judge(
        self, begun: Situation, tried: list[Tried], jobs: list[Any], event: Event = Event.SUCCEEDED
    ) -> list[Any]:
        """Wait for the jobs, and hold what they led to against the table; return them as they ended."""
        jobs = [self._ended(job) for job in jobs]
        went_well = event is Event.SUCCEEDED
        for job in jobs:
            assert job["state"] == ("Succeeded" if went_well else "Failed"), (tried, job)
            assert went_well or (job["error"]["message"] and job["error"]["hint"]), job
        state, test = begun
        if state in BUSY:
            state = advance(state, event)
        if test in BUSY_TESTS:
            test = advance_test(test, event)
        self.is_in(state, test)
        for (*_, operation), job in zip(tried, jobs, strict=True):
            if went_well and operation is Operation.TEST_FAILOVER:
                self._test = job["result"]["name"]
        assert self._test_active() is (test is TestState.RUNNING), tried
        if went_well:
            self.seen.done.update(tried)
        return jobs

    def _test_active(self) -> bool:
        return bool(self._test) and LabGuest(self.lab, self._test).active("secondary")

    def ask_refused(self) -> None:
        """Ask for every operation that is refused now, if that was not done: each answer says why, and what to do instead."""
        item = self.item
        state, test = ItemState(item["state"]), TestState(item["test_state"])
        if all((state, test, each) in self.seen.refused for each in Operation if refusal(state, test, each)):
            return
        for operation in Operation:
            wanted = refusal(state, test, operation)
            shown = item["allowed_operations"][operation.value]
            assert shown["allowed"] is (wanted is None), (state, test, operation)
            if wanted is None:
                continue
            answer = self._plain.post(f"items/{self._ref}/{operation.value}", json={})
            assert answer.status_code == 409, (state, test, operation, answer.text)
            error = answer.json()["error"]
            assert error["code"] == "operation_refused", error
            assert shown["reason"], (state, test, operation)
            assert shown["instead"], (state, test, operation)
            assert (shown["reason"], shown["instead"]) == (wanted.reason, wanted.instead)
            assert error["message"] == f"{operation.value} is refused: {shown['reason']}"
            assert error["hint"] == shown["instead"]
            self.seen.refused.add((state, test, operation))
        assert self.situation() == (state, test), "a refused operation changed something"

    def _post(self, operation: Operation, body: dict[str, Any]) -> Any:
        return self.lab.api.post(f"/items/{self._ref}/{operation.value}", body)

    @contextmanager
    def _nodes_held(self, situation: Situation | None = None) -> Iterator[None]:
        """Hold both nodes still, unless this situation lasts by itself: no job can end meanwhile."""
        if situation is not None and settled(situation):
            yield
            return
        pids = [self.lab.pid(site) for site in SITES]
        try:
            for site in SITES:
                self.lab.signal(site, signal.SIGSTOP)
            yield
        finally:
            for site in SITES:
                self.lab.signal(site, signal.SIGCONT)
        assert pids == [self.lab.pid(site) for site in SITES]

    def _job(self, job: Any) -> Any:
        return self.lab.api.get(f"/jobs/{job['id']}")

    def _ended(self, job: Any) -> Any:
        def ended() -> Any:
            shown = self._job(job)
            assert shown["state"] != "Suspended", shown
            return shown if shown["ended"] else None

        return until(ended, f"the end of {job['operation']}", SLOW_S)

    # -- judging

    def runs_at(self, site: str | None) -> None:
        """The guest runs there and nowhere else."""
        for each in SITES:
            assert self.guest.active(each) is (each == site), each

    def goes_on_from(self, job: Any, site: str = "secondary") -> int:
        """The guest went on at the site with the record after those of the job's point, which is of one moment."""
        point = int(job["result"]["point"]["sequence"])
        with self.guest.console(site) as console:
            first = console.first_record(SLOW_S)
        assert first == self.lab.check_point(self.name, point, site).last + 1
        self.runs_at(site)
        return point

    def goes_on(self, site: str) -> None:
        """The guest runs there, and writes records."""
        with self.guest.console(site) as console:
            console.record(SLOW_S)
        self.runs_at(site)

    def lost_nothing(self, old: str, new: str) -> None:
        """After a planned failover: the very next record, on one side only."""
        left = check_records(self.guest.disks(old))
        assert left.ok, left.problems
        with self.guest.console(new) as console:
            assert console.first_record(SLOW_S) == left.last + 1
        self.runs_at(new)

    def replicates(self, site: str = "secondary") -> int:
        """A point came since the last operation began, and is of one moment; return its sequence."""
        before = self._points.get(site, 0)

        def newer() -> int:
            # As the service lists them: what it does not know of yet nobody can ask for.
            listed = self.lab.api.get(f"/items/{self._ref}/points")
            newest = max((int(row["sequence"]) for row in listed), default=0)
            return newest if newest > before else 0

        point = until(newer, f"a point after {before}", SLOW_S)
        self.lab.check_point(self.name, point, site)
        return point

    def reports(self, what: str, holds: Callable[[Any], bool]) -> None:
        """The source's node says so of itself."""
        until(lambda: holds(self.lab.source(self._ref) or {}), f"the source says: {what}", SLOW_S)

    def test_runs(self) -> None:
        """The test's machine goes on writing its own records, beside everything else."""
        with self.guest.console("secondary", self._test) as console:
            console.record(SLOW_S)

    # -- making the target refuse

    def test_in_vain(self) -> None:
        """Another image lies where the test's disk must go."""
        planted = self._plant(f"test-e{self.item['epoch']}")
        self.do(Operation.TEST_FAILOVER, Event.FAILED)
        assert not planted.exists(), "what failed was not cleaned up"

    def change_point_in_vain(self, sequence: int) -> None:
        """Another image lies where the next start's disk must go, and where the one of the point before must go again."""
        epoch = self.item["epoch"]
        planted = [self._plant(f"replica-e{epoch + more}") for more in (1, 2)]
        self.do(Operation.CHANGE_POINT, Event.FAILED, sequence=sequence)
        self.runs_at(None)
        assert not any(path.exists() for path in planted), "what failed was not cleaned up"

    def _plant(self, start: str) -> Path:
        (disk,) = self.item["disks"]
        path = self.lab.journal(self.name).parent.parent / "replicas" / self._ref / f"{start}-{disk}.qcow2"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"somebody's")
        return path

    # -- afterwards

    def disabled(self, site: str | None = "primary") -> None:
        """Disable it: the machine runs there, and nothing of ours is left. It is not listed, shown by its id still; all is refused."""
        self.do(Operation.DISABLE)
        self.runs_at(site)
        for facts in self.lab.facts["sites"].values():
            left = [Path(facts["journals"]) / self._ref, Path(facts["node_state"]) / "items" / self._ref]
            assert not any(path.exists() for path in left), left
        self.ask_refused()
        assert self.name not in {row["name"] for row in self.lab.api.get("/items")}

    def _given_up(self) -> Any:
        """Begin to disable it; refused (which `until` takes as "not yet") while anything else is under way."""
        api = self.lab.api
        if self.item["test_state"] != TestState.NONE.value:
            self._ended(api.post(f"/items/{self._ref}/cleanup-test"))
        return api.post(f"/items/{self._ref}/disable", {"force": True})

    def leave(self) -> None:
        """Leave nothing behind, whatever state the walk ended in."""
        self._plain.close()
        if any(row["name"] == self.name for row in self.lab.api.get("/items")):
            self._ended(until(self._given_up, f"{self.name} is given up", SLOW_S))
        for site in SITES:
            with suppress(libvirt.libvirtError):
                images = self.guest.disks(site)
                domain = self.guest.domain(site)
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(_UNDEFINE)
                for image in images:
                    image.unlink(missing_ok=True)
                    with suppress(OSError):
                        image.parent.rmdir()
        for path in self.lab.hypervisor("primary").storage.glob(f"{self.name}*"):
            path.unlink()


@contextmanager
def walking(lab: LabStory, share: Share) -> Iterator[Walk]:
    """A small guest that runs at the first site, to be walked through its share of the table; gone at the end."""
    guest = lab.guest(f"every-{share.value}", count=1, size=64 * MIB, rate=15, record_area=2 * MIB)
    walk = Walk(lab, guest)
    try:
        guest.start().close()
        yield walk
        walk.seen.must_hold(share)
    finally:
        walk.leave()
