"""Members of a group meet: snapshots are begun while all stand still, and nobody stays suspended because of us."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secondsite.capture.port import CancelledError
from secondsite.errors import UnavailableError
from secondsite.fabric.fake import FakeFabric
from secondsite.fabric.port import PowerState
from secondsite.model.ids import Digest, DiskKey, Epoch, GroupId, ItemId, Sequence
from secondsite.model.manifest import Consistency
from secondsite.model.policy import Policy
from secondsite.node.records import Acked, ItemRecord, Role
from secondsite.node.source.barrier import Pausing, StandStill
from secondsite.node.source.group import Cut
from secondsite.node.source.groups import Groups

GROUP = GroupId("aaaaaaaa-0000-4000-8000-000000000001")
OTHER = GroupId("aaaaaaaa-0000-4000-8000-000000000002")
ITEMS = [ItemId(f"0b6c7e9a-0000-4000-8000-00000000000{number}") for number in (1, 2, 3)]
NOW = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)


class Replicators:
    """Who takes part, and who was called."""

    def __init__(self) -> None:
        self.busy = set(ITEMS)
        self.called: list[ItemId] = []

    def takes_part(self, item: ItemId) -> bool:
        return item in self.busy

    def call(self, item: ItemId) -> None:
        self.called.append(item)


class Site:
    """Three machines, their items, a group of the first two."""

    boot = "bbbbbbbb-0000-4000-8000-000000000001\n"

    def __init__(self, folder: Path, *, pause_max_s: float = 30.0) -> None:
        self.folder = folder
        self.fabric = FakeFabric()
        self.vms = {
            item: self.fabric.add_vm(
                f"vm{number}", {DiskKey("vda"): (folder / f"{number}.qcow2", 1 << 20)}
            ).uuid
            for number, item in enumerate(ITEMS)
        }
        for vm in self.vms.values():
            self.fabric.start(vm)
        self.peers = Replicators()
        self.pool = ThreadPoolExecutor(8)
        self.pause_max_s = pause_max_s
        self.open()
        self.groups.set(GROUP, ITEMS[:2], revision=1)

    def open(self) -> None:
        self.pausing = Pausing(
            self.fabric,
            self.folder / "groups",
            lambda: NOW,
            time.monotonic,
            pause_max_s=self.pause_max_s,
            boot_id=lambda: self.boot,
        )
        self.groups = Groups(self.pausing)
        self.groups.peers = self.peers

    def record(self, item: ItemId) -> ItemRecord:
        acked = Acked(Sequence(1), Digest("0" * 64), "2026-11-23T05:00:00.000000Z", "ss-1")
        return ItemRecord(
            item=item,
            name="vm",
            epoch=Epoch(1),
            role=Role.SOURCE,
            digest_key="00" * 32,
            policy=Policy(copy_frequency_s=30),
            disks=(DiskKey("vda"),),
            vm=self.vms[item],
            acked=acked,
        )

    def cycle(
        self,
        item: ItemId,
        snapshot: Callable[[], object] = lambda: None,
        *,
        before: Callable[[], object] = lambda: None,
        consistency: Consistency = Consistency.CRASH,
        stop: threading.Event | None = None,
        record: ItemRecord | None = None,
    ) -> Future[Cut | None]:
        """Begin what a member's cycle does, in a thread of its own."""
        stop = stop or threading.Event()

        def run() -> Cut | None:
            with self.groups.meet(record or self.record(item), consistency, stop.is_set) as meeting:
                before()
                with meeting.still():
                    snapshot()
                return meeting.cut

        return self.pool.submit(run)

    def power(self) -> list[PowerState]:
        return [self.fabric.power(vm) for vm in self.vms.values()]

    @property
    def suspends(self) -> int:
        return sum(kind == "suspend" for kind, _ in self.fabric.calls)


RUN, OFF, PAUSED = PowerState.RUNNING, PowerState.OFF, PowerState.PAUSED


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.groups.close()
    site.pool.shutdown()


def notes(site: Site) -> list[str]:
    return sorted(path.name for path in site.pausing.folder.glob("*.paused"))


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_all_snapshots_are_begun_while_all_members_stand_still(site: Site) -> None:
    seen: list[list[PowerState]] = []
    cuts = [site.cycle(item, lambda: seen.append(site.power())) for item in ITEMS[:2]]
    first, second = (cut.result(20) for cut in cuts)
    assert seen == [[PAUSED, PAUSED, RUN]] * 2  # the third machine is in no group
    assert first is not None
    assert first == second
    assert (first.number, first.members, first.time) == (1, 2, NOW)
    assert first.labels() == {"group": f"{GROUP}:1", "group.members": "2"}
    assert site.power() == [RUN, RUN, RUN]
    assert notes(site) == []


def test_who_comes_first_calls_the_others(site: Site) -> None:
    first = site.cycle(ITEMS[0])
    until(lambda: site.peers.called, "a call")
    assert site.peers.called == [ITEMS[1]]
    assert not first.done()
    assert site.cycle(ITEMS[1]).result(20) == first.result(20) is not None


def test_nobody_waits_for_a_member_that_takes_no_part_and_nobody_is_suspended(site: Site) -> None:
    site.peers.busy = {ITEMS[0]}
    assert site.cycle(ITEMS[0]).result(20) is None
    assert site.suspends == 0
    described = site.groups.describe(ITEMS[0])
    assert described is not None
    assert (described["alone"], described["cuts"], described["failed"]) == (1, 0, 0)


def test_a_member_that_falls_out_while_it_is_awaited_is_no_longer_awaited(site: Site) -> None:
    first = site.cycle(ITEMS[0])
    until(lambda: site.peers.called, "a call")
    site.peers.busy.discard(ITEMS[1])
    assert first.result(20) is None


def test_a_busy_member_is_awaited_for_one_copy_frequency(site: Site) -> None:
    record = replace(site.record(ITEMS[0]), policy=Policy(copy_frequency_s=5))
    began = time.monotonic()
    assert site.cycle(ITEMS[0], record=record).result(30) is None
    assert time.monotonic() - began >= 5


@pytest.mark.parametrize(
    "change",
    [
        {"acked": None},
        {"acked": Acked(Sequence(1), Digest("0" * 64), "2026-11-23T05:00:00.000000Z", "")},
        {"paused": True},
    ],
    ids=["initial", "resync", "paused"],
)
def test_a_cycle_that_compares_waits_for_nobody(site: Site, change: dict[str, object]) -> None:
    assert site.cycle(ITEMS[0], record=replace(site.record(ITEMS[0]), **change)).result(20) is None  # type: ignore[arg-type]
    assert site.peers.called == []


def test_the_last_point_of_a_planned_failover_waits_for_nobody(site: Site) -> None:
    assert site.cycle(ITEMS[0], consistency=Consistency.PLANNED).result(20) is None


def test_a_stopped_replicator_leaves_the_gathering(site: Site) -> None:
    stop = threading.Event()
    first = site.cycle(ITEMS[0], stop=stop)
    until(lambda: site.peers.called, "a call")
    stop.set()
    with pytest.raises(CancelledError):
        first.result(20)
    again = [site.cycle(item) for item in ITEMS[:2]]
    assert all(cut.result(20) is not None for cut in again)


def test_a_member_that_fails_before_its_snapshot_lets_the_others_go_on_alone(site: Site) -> None:
    def fail() -> None:
        raise UnavailableError("the hypervisor is away")

    first, second = site.cycle(ITEMS[0]), site.cycle(ITEMS[1], before=fail)
    assert first.result(20) is None
    with pytest.raises(UnavailableError):
        second.result(20)
    assert site.suspends == 0


def test_a_member_whose_snapshot_fails_leaves_nobody_suspended(site: Site) -> None:
    def fail() -> None:
        raise UnavailableError("no snapshot")

    first, second = site.cycle(ITEMS[0]), site.cycle(ITEMS[1], fail)
    cut = first.result(20)
    assert cut is not None
    assert cut.number == 1  # its point is one of a group that is not complete
    with pytest.raises(UnavailableError):
        second.result(20)
    assert site.power() == [RUN, RUN, RUN]
    later = [site.cycle(item) for item in ITEMS[:2]]
    assert {cut.result(20).number for cut in later} == {2}  # type: ignore[union-attr]


def test_a_snapshot_that_takes_too_long_is_no_common_point_and_all_run_on(tmp_path: Path) -> None:
    site = Site(tmp_path, pause_max_s=0.2)

    def slow() -> None:
        until(lambda: site.power() == [RUN, RUN, RUN], "the watchdog")

    first, second = site.cycle(ITEMS[0]), site.cycle(ITEMS[1], slow)
    assert first.result(20) is None
    assert second.result(20) is None
    described = site.groups.describe(ITEMS[0])
    assert described is not None
    assert (described["failed"], described["cuts"]) == (1, 0)
    until(lambda: notes(site) == [], "the note's end")
    site.pool.shutdown()


def test_who_an_operator_paused_stays_paused_and_who_is_off_stays_off(site: Site) -> None:
    site.groups.set(GROUP, ITEMS, revision=2)
    site.fabric.suspend(site.vms[ITEMS[0]])
    site.fabric.power_off(site.vms[ITEMS[1]])
    cuts = [site.cycle(item).result for item in ITEMS]
    assert len({cut(20) for cut in cuts}) == 1
    assert site.power() == [PAUSED, OFF, RUN]


def test_a_machine_that_an_operator_resumes_amid_the_cut_ends_it(site: Site) -> None:
    meddle = site.cycle(ITEMS[0], lambda: site.fabric.resume(site.vms[ITEMS[1]]))
    other = site.cycle(ITEMS[1])
    assert (meddle.result(20), other.result(20)) == (None, None)


def test_a_machine_that_is_started_amid_the_cut_ends_it(site: Site) -> None:
    site.fabric.power_off(site.vms[ITEMS[1]])
    starter = site.cycle(ITEMS[0], lambda: site.fabric.start(site.vms[ITEMS[1]]))
    other = site.cycle(ITEMS[1])
    assert (starter.result(20), other.result(20)) == (None, None)
    assert site.power() == [RUN, RUN, RUN]


def test_a_machine_that_cannot_be_suspended_lets_all_run_and_go_on_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspend = site.fabric.suspend

    def broken(vm: str) -> bool:
        if vm == site.vms[ITEMS[1]]:
            raise UnavailableError("libvirtd is away")
        return suspend(vm)

    monkeypatch.setattr(site.fabric, "suspend", broken)
    cuts = [site.cycle(item) for item in ITEMS[:2]]
    assert [cut.result(20) for cut in cuts] == [None, None]
    assert site.power() == [RUN, RUN, RUN]


def test_a_kill_amid_the_stand_still_is_made_good_by_the_next_start(site: Site) -> None:
    still = StandStill(site.pausing, GROUP, list(site.vms.values()), lambda: None)
    site.fabric.suspend(site.vms[ITEMS[2]])  # an operator did
    still.begin()
    still._watchdog.cancel()  # the process is gone
    assert site.power() == [PAUSED, PAUSED, PAUSED]
    noted = json.loads(site.pausing.note(GROUP).read_text())["machines"]
    assert noted == sorted(site.vms[item] for item in ITEMS[:2])
    site.open()
    site.groups.start()
    assert site.power() == [RUN, RUN, PAUSED]
    assert notes(site) == []
    site.open()
    site.fabric.suspend(site.vms[ITEMS[0]])
    site.groups.start()
    assert site.power() == [PAUSED, RUN, PAUSED]  # no note, no resume


def test_a_note_of_an_earlier_boot_resumes_nobody(site: Site) -> None:
    """What was suspended then is gone; who stands still now was paused by the gate, or by an operator."""
    site.pausing.write(site.pausing.note("a-1"), [site.vms[ITEMS[0]]])
    site.fabric.suspend(site.vms[ITEMS[0]])
    site.boot = "bbbbbbbb-0000-4000-8000-000000000002"
    site.open()
    site.groups.start()
    assert site.power() == [PAUSED, RUN, RUN]
    assert notes(site) == []


def test_a_resume_that_fails_is_repeated_until_it_succeeds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondsite.node.source.barrier.RETRY_S", 0.02)
    resume, tries = site.fabric.resume, []

    def away(vm: str) -> bool:
        tries.append(vm)
        if len(tries) < 6:
            raise UnavailableError("libvirtd is away")
        return resume(vm)

    monkeypatch.setattr(site.fabric, "resume", away)
    cuts = [site.cycle(item) for item in ITEMS[:2]]
    for cut in cuts:
        cut.result(20)
    until(lambda: site.power() == [RUN, RUN, RUN], "the resume")
    until(lambda: notes(site) == [], "the note's end")


def test_members_are_kept_over_a_restart_and_numbers_are_never_used_twice(site: Site) -> None:
    for expected in (1, 2):
        cuts = [site.cycle(item) for item in ITEMS[:2]]
        assert {cut.result(20).number for cut in cuts} == {expected}  # type: ignore[union-attr]
    site.open()
    cuts = [site.cycle(item) for item in ITEMS[:2]]
    assert {cut.result(20).number for cut in cuts} == {3}  # type: ignore[union-attr]
    site.groups.set(GROUP, ITEMS[:2], revision=9, number=40)
    cuts = [site.cycle(item) for item in ITEMS[:2]]
    assert {cut.result(20).number for cut in cuts} == {41}  # type: ignore[union-attr]


def test_an_older_order_changes_nothing_and_a_member_is_in_one_group(site: Site) -> None:
    site.groups.set(GROUP, ITEMS, revision=5)
    site.groups.set(GROUP, ITEMS[:2], revision=4)
    described = site.groups.describe(ITEMS[2])
    assert described is not None
    assert (described["members"], described["revision"]) == (ITEMS, 5)
    site.groups.set(OTHER, ITEMS[1:], revision=1)
    left = site.groups.describe(ITEMS[0])
    assert left is not None
    assert left["members"] == ITEMS[:1]
    site.groups.set(OTHER, [], revision=2)
    site.groups.set(OTHER, ITEMS[1:], revision=1)  # late
    assert site.groups.describe(ITEMS[1]) is None
    site.open()
    assert site.groups.describe(ITEMS[1]) is None


def test_a_group_that_changes_lets_those_who_wait_go_on(site: Site) -> None:
    first = site.cycle(ITEMS[0])
    until(lambda: site.peers.called, "a call")
    site.groups.set(GROUP, [], revision=2)
    assert first.result(20) is None
