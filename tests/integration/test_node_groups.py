"""A consistency group on real machines: what the second guest did because of the first is never there without it.

The second guest writes record n only after it was told that the first one's record n is stable. So in a copy of both that is one
moment, the second one's last record is never higher than the first one's.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from secondsite.capture.libvirt import LibvirtCapture
from secondsite.capture.port import Snapshot
from secondsite.errors import UnavailableError
from secondsite.fabric.port import PowerState
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.records import RecordCheck, check_records
from secondsite.model.ids import GroupId, ItemId
from support.guests import Guest, running_guest
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, node_pair, wait_until
from support.relay import Relay, last_done

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SIZE = 64 << 20
GROUP = GroupId("aaaaaaaa-0000-4000-8000-000000000001")
CUTS = 12
BLIND_CUTS = 12
"""Without the barrier a violation is found within so many cuts; see the test."""
LATE_S = 0.5
"""How much later the second guest's snapshot is begun at most: shorter than any stand-still may last."""


class Pair:
    """Two guests of one group: `cause` writes, `effect` follows."""

    def __init__(self, nodes: NodePair, cause: Guest, effect: Guest) -> None:
        self.nodes = nodes
        self.guests = (cause, effect)
        # The fastest policy: nothing waits for the interval, since the tests wake who waits.
        self.items = tuple(
            nodes.protect(guest.domain.name(), dict.fromkeys(("vda", "vdb")[: len(guest.disks)], SIZE))
            for guest in self.guests
        )
        for item in self.items:
            wait_until(lambda item=item: self.points(item), 120, "a first point")
        self.group(*self.items)

    def group(self, *members: ItemId) -> None:
        self.nodes.primary.call(
            "source.group", None, 0, {"group": GROUP, "members": list(members), "revision": 1}
        )

    def points(self, item: ItemId) -> list[tuple[int, str | None]]:
        journals = self.nodes.recovery.daemon.journals
        if not journals.exists(item):
            return []
        return [(point.sequence, point.group) for point in journals.get(item).points()]

    def group_points(self) -> dict[str, tuple[int, ...]]:
        """The cuts that every member's journal holds, with the members' sequences."""
        held = [{group: sequence for sequence, group in self.points(item) if group} for item in self.items]
        return {
            group: tuple(each[group] for each in held)
            for group in held[0]
            if all(group in each for each in held)
        }

    def wait_for_cuts(self, count: int, timeout_s: float = 300) -> None:
        """Wait for so many more group points, without waiting for the interval between them."""
        before = set(self.group_points())

        def enough() -> bool:
            self.nodes.primary.daemon.replicators.call(self.items[0])
            return len(set(self.group_points()) - before) >= count

        wait_until(enough, timeout_s, f"{count} common points")

    @contextmanager
    def at(self, sequences: tuple[int, ...]) -> Iterator[list[RecordCheck]]:
        """What the records of each guest say at a point of each."""
        with ExitStack() as stack:
            found = []
            for item, sequence in zip(self.items, sequences, strict=True):
                journal = self.nodes.recovery.daemon.journals.get(item)
                view = stack.enter_context(journal.view(sequence, purpose="test", verify=True))

                def reader(disk):  # type: ignore[no-untyped-def]
                    def read_at(offset: int, length: int) -> bytes:
                        data = bytearray(length)
                        disk.readinto(offset, memoryview(data))
                        return bytes(data)

                    return read_at

                found.append(check_records([reader(view.disks[key]) for key in sorted(view.disks)]))
            yield found

    def powers(self) -> list[PowerState]:
        fabric = self.nodes.primary.daemon.fabric
        return [fabric.power(guest.domain.name()) for guest in self.guests]


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair


@pytest.fixture
def pair(nodes: NodePair, hypervisor_pair: HypervisorPair, guest_files: GuestFiles) -> Iterator[Pair]:
    site = hypervisor_pair.primary
    shape = {"size": SIZE, "churn": 4}
    with (
        running_guest(site, guest_files, "group-cause", rate=40, say=True, **shape) as cause,  # type: ignore[arg-type]
        running_guest(site, guest_files, "group-effect", rate=2000, say=True, follow=True, **shape) as effect,  # type: ignore[arg-type]
    ):
        assert cause.console is not None
        assert effect.console is not None
        with Relay(cause.console, effect.console) as relay:
            pair = Pair(nodes, cause, effect)
            # It had not begun to follow while it was booting.
            ends = (cause.console, effect.console)
            wait_until(
                lambda: last_done(ends[0]) - last_done(ends[1]) < 20, 120, "the second guest's catching up"
            )
            yield pair
            for item in pair.items:
                nodes.primary.call("source.stop", item, 1)
            assert relay.delays, "the second guest did nothing"


@pytest.fixture
def late_effect(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second guest's snapshot begins late: after an effect whose cause the first one's lacks, if there can be one."""
    cause, effect = pair.guests
    assert cause.console is not None
    assert effect.console is not None
    told, did = cause.console, effect.console
    first, second = (pair.nodes.primary.daemon.items.get(item).vm for item in pair.items)
    begun = threading.Event()
    original = LibvirtCapture.snapshot

    def effect_beyond() -> None:
        begun.wait(LATE_S)
        begun.clear()
        held = last_done(told)
        with suppress(AssertionError):
            wait_until(lambda: last_done(did) > held, LATE_S)

    def snapshot(self: LibvirtCapture, *, since: str | None, new: str) -> Snapshot:
        instant = self.instant

        @contextmanager
        def moved() -> Iterator[None]:
            with instant():
                if self._machine.name == second:
                    effect_beyond()
                yield
                if self._machine.name == first:
                    begun.set()

        self.instant = moved
        return original(self, since=since, new=new)

    monkeypatch.setattr(LibvirtCapture, "snapshot", snapshot)


@pytest.mark.usefixtures("late_effect")
def test_no_effect_is_ever_there_without_its_cause(pair: Pair, short_path: Path) -> None:
    pair.wait_for_cuts(CUTS)
    common = pair.group_points()
    assert len(common) >= CUTS
    lag = []
    for sequences in common.values():
        with pair.at(sequences) as (cause, effect):
            assert cause.ok, cause.problems
            assert effect.ok, effect.problems
            assert effect.last <= cause.last
            lag.append(cause.last - effect.last)
    print(f"effects behind their causes, in records: {lag}")
    assert min(lag) < 50, "the second guest is so far behind that nothing could be seen"
    described = pair.nodes.primary.daemon.replicators.find(pair.items[0]).status()["group"]  # type: ignore[union-attr]
    print(f"group: {described}")
    assert described["cuts"] >= CUTS
    assert described["pause_s"] < 2
    wait_until(lambda: pair.powers() == [PowerState.RUNNING] * 2, what="the machines' running on")

    # Members' points of a cut have one time, and their file systems are sound.
    newest = max(common.values())
    journals = [pair.nodes.recovery.daemon.journals.get(item) for item in pair.items]
    manifests = [journal.manifest(sequence) for journal, sequence in zip(journals, newest, strict=True)]
    assert len({manifest.time for manifest in manifests}) == 1
    assert {manifest.labels["group.members"] for manifest in manifests} == {"2"}
    for journal, sequence in zip(journals, newest, strict=True):
        with journal.view(sequence, purpose="test") as view:
            for key, disk in view.disks.items():
                image = short_path / f"{key}.raw"
                data = bytearray(disk.size)
                disk.readinto(0, memoryview(data))
                image.write_bytes(data)
                assert check_filesystem(image).ok


@pytest.mark.usefixtures("late_effect")
def test_without_the_barrier_an_effect_is_there_without_its_cause(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the test above can fail. Nobody is suspended; to the node it looks as if all stood still."""
    fabric = pair.nodes.primary.daemon.fabric
    power = fabric.power
    still: set[str] = set()

    def suspend(vm: str) -> bool:
        still.add(vm)
        return True

    def resume(vm: str) -> bool:
        still.discard(vm)
        return True

    monkeypatch.setattr(fabric, "suspend", suspend)
    monkeypatch.setattr(fabric, "resume", resume)
    monkeypatch.setattr(fabric, "power", lambda vm: PowerState.PAUSED if vm in still else power(vm))
    judged: set[str] = set()
    while len(judged) < BLIND_CUTS:
        pair.wait_for_cuts(1)
        for group, sequences in pair.group_points().items():
            if group not in judged:
                judged.add(group)
                with pair.at(sequences) as (cause, effect):
                    if effect.last > cause.last:
                        print(f"cut {len(judged)}: effect {effect.last}, cause {cause.last}")
                        return
    pytest.fail(f"no violation in {len(judged)} cuts")


def test_a_member_whose_snapshot_fails_lets_the_other_run_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.wait_for_cuts(1)
    victim = pair.nodes.primary.daemon.items.get(pair.items[1]).vm
    original, failed = LibvirtCapture.snapshot, []

    def snapshot(self: LibvirtCapture, *, since: str | None, new: str) -> Snapshot:
        if self._machine.name == victim and not failed:
            with self.instant():  # as the others begin theirs
                failed.append(new)
                raise UnavailableError("no snapshot this time")
        return original(self, since=since, new=new)

    monkeypatch.setattr(LibvirtCapture, "snapshot", snapshot)
    before = set(pair.group_points())
    pair.wait_for_cuts(2)
    assert failed
    # Up to the newest cut that both hold: of one that is under way now, one may have its point and the other not yet.
    newest = max(pair.group_points().values())
    labels = [
        {group for sequence, group in pair.points(item) if group and sequence <= last}
        for item, last in zip(pair.items, newest, strict=True)
    ]
    # The other's point of that cut is valid for itself, and is no group point.
    assert len(labels[0] - labels[1]) == 1
    assert labels[1] <= labels[0]
    assert set(pair.group_points()) >= before
    wait_until(lambda: pair.powers() == [PowerState.RUNNING] * 2, what="the machines' running on")


KILLED = """
    import os, shutil, signal, sys
    from pathlib import Path
    from secondsite.node.daemon import NodeDaemon
    from secondsite.node.source import barrier

    if sys.argv[2] == "alone":
        shutil.which = lambda _program: None
    begin = barrier.StandStill.begin

    def killed(self):
        begin(self)
        fabric = self._pausing.fabric
        print("stood", [3 if fabric.power(vm) == "paused" else 1 for vm in self._machines], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    barrier.StandStill.begin = killed
    daemon = NodeDaemon(Path(sys.argv[1]))
    daemon.listener.start()
    daemon.replicators.start_all()
    signal.pause()
"""


@pytest.mark.parametrize("guard", ["guarded", "alone"])
def test_a_node_killed_while_all_stand_still_leaves_nobody_suspended(pair: Pair, guard: str) -> None:
    """Its guard resumes them at once; without one (no virsh on the host) they wait for the node."""
    pair.wait_for_cuts(1)
    node = pair.nodes.primary
    node.close()
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(node.state), guard],
        timeout=240,
        check=False,
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL
    assert child.stdout.split() == ["stood", "[3,", "3]"], "both were suspended when it died"

    def states() -> list[int]:
        return [guest.domain.state()[0] for guest in pair.guests]

    if guard == "guarded":
        wait_until(lambda: states() == [1, 1], 30, "the guard's resume")
        wait_until(lambda: not list((node.state / "groups").glob("*.paused")), 30, "the note's end")
    else:
        assert states() == [3, 3]
    node.start()
    # It begins a cut at once, and then they stand still for a moment.
    wait_until(lambda: states() == [1, 1], 30, "the node's resume")
    pair.wait_for_cuts(1)
    for sequences in pair.group_points().values():
        with pair.at(sequences) as (cause, effect):
            assert cause.ok
            assert effect.ok
            assert effect.last <= cause.last
