"""Nodes, views and QEMU die at bad moments. Replication goes on by itself; no point is ever wrong; little is shipped twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from secondsite import processes
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.guest.definition import domain_xml
from support.lab_story import MIB, LabGuest, LabStory, differing_blocks, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

SOON_S = 20.0
"""From the start of a node to the next point: its own start, a quick retry (at most 5 s here), a cycle."""
ATTEMPTS = 4
"""To kill a node before what was seen of its cycle is over."""


@pytest.fixture(scope="module")
def guest(session_lab: LabStory) -> Iterator[LabGuest]:
    """A guest that is protected and has a few points."""
    guest = session_lab.guest("killed-node", rate=100, churn=2)
    guest.start().close()
    session_lab.protect(guest.name)
    until(lambda: len(session_lab.points(guest.name)) >= 3, "three points")
    yield guest
    session_lab.restart_missing()
    session_lab.give_up(guest)


def catch(sight: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Look without a pause: the moment is short."""
    deadline = time.monotonic() + timeout_s
    while not sight():
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.0005)


def any_file(folder: Path, pattern: str) -> bool:
    return any(True for _ in folder.glob(pattern))


def item_folder(lab: LabStory, site: str, name: str) -> Path:
    return Path(lab.facts["sites"][site]["node_state"]) / "items" / lab.item(name)["id"]


def backup_runs(lab: LabStory, guest: LabGuest) -> bool:
    try:
        guest.domain("primary").backupGetXMLDesc()
    except libvirt.libvirtError:
        return False
    return True


def counters(lab: LabStory, name: str) -> dict[str, int]:
    found: dict[str, int] = lab.source(name)["counters"]
    return found


def recovers(lab: LabStory, guest: LabGuest, known: int) -> float:
    """Wait for a point after `known`; return the seconds that it took."""
    began = time.monotonic()
    until(lambda: lab.newest(guest.name) > known, "a point after the kill", 60, 0.05)
    return time.monotonic() - began


def test_the_targets_node_dies_in_the_middle_of_cycles(lab: LabStory, guest: LabGuest) -> None:
    journal = lab.journal(guest.name)
    pending = item_folder(lab, "primary", guest.name) / "pending"
    before = counters(lab, guest.name)  # both figures of one report: a cycle may end between two
    moments: dict[str, Callable[[], bool]] = {
        "parts arrive": lambda: any_file(journal / "incoming", "*"),
        "a point is sealed": pending.exists,
    }
    largest = 0
    for what, sight in moments.items():
        acknowledged = lab.newest(guest.name)
        catch(sight, what)
        lab.kill("secondary")
        lab.start("secondary")
        assert recovers(lab, guest, acknowledged) < SOON_S, what
    # Nothing beyond the cycles at hand was shipped twice: what the link carried against what changed in all.
    sequence = lab.wait_for_points(guest.name, 2)
    after = until(
        lambda: (found := lab.source(guest.name)) and found["sequence"] >= sequence and found, "report"
    )
    largest = max(cycle["bytes_changed"] for cycle in after["cycles"])
    shipped = after["counters"]["bytes_shipped"] - before["bytes_shipped"]
    changed = after["counters"]["bytes_changed"] - before["bytes_changed"]
    assert shipped <= changed + 2 * largest + MIB
    assert after["counters"].get("resyncs", 0) == 0
    for point in lab.points(guest.name)[-4:]:
        lab.check_point(guest.name, point.sequence)


def test_the_targets_node_dies_during_the_initial_replication(lab: LabStory) -> None:
    content = random.Random(1).randbytes(40 * MIB)
    image = still_machine(lab, "killed-initial", content)
    lab.policy(bandwidth_limit=8 * MIB)
    try:
        lab.known("killed-initial")
        command = lab.start_cli("item", "protect", "killed-initial")
        journal = until(lambda: lab.journal("killed-initial"), "the item")
        catch(lambda: any_file(journal / "incoming", "*"), "parts arrive")
        lab.kill("secondary")
        lab.start("secondary")
        assert lab.finished(command)["state"] == "Succeeded"
    finally:
        lab.policy(bandwidth_limit=1 << 40)
    (disk,) = lab.extract("killed-initial", lab.newest("killed-initial"))
    held = disk.read_bytes()
    assert held[: len(content)] == content
    assert not any(held[len(content) :])

    def counted() -> int:
        # A try that the kill has ended is counted, too: the figure is whole once that of the cycle is in it.
        found = counters(lab, "killed-initial")
        shipped = found.get("bytes_shipped", 0)
        return shipped if found.get("cycles") and shipped >= len(content) else 0

    shipped = until(counted, "the cycle's count, of all that the disk holds")
    print(f"\nshipped {shipped / MIB:.1f} MiB for {len(content) / MIB:.0f}")
    # What had arrived stays; what was on the wire goes again: at most a part on each of two connections.
    assert shipped <= len(content) + 2 * 8 * MIB
    lab.cli("item", "disable", "killed-initial")
    lab.connection("primary").lookupByName("killed-initial").undefine()
    image.unlink()


def still_machine(lab: LabStory, name: str, content: bytes) -> Path:
    """Define a machine that stays off, with one disk that begins with these bytes; return its image."""
    hypervisor = lab.hypervisor("primary")
    raw, image = hypervisor.storage / f"{name}.raw", hypervisor.storage / f"{name}.qcow2"
    raw.write_bytes(content)
    os.truncate(raw, 64 * MIB)
    subprocess.run(
        ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(image)], check=True
    )
    raw.unlink()
    hypervisor.own(image)
    lab.connection("primary").defineXML(domain_xml(name, lab.files(), [image]))
    return image


def test_the_sources_node_dies_in_the_middle_of_cycles(lab: LabStory, guest: LabGuest) -> None:
    pending = item_folder(lab, "primary", guest.name) / "pending"
    tracking = counters(lab, guest.name).get("tracking_lost", 0)
    moments: dict[str, Callable[[], bool]] = {
        "a backup job runs": lambda: backup_runs(lab, guest),
        "a point is pending": pending.exists,
    }
    left = {}
    for what, sight in moments.items():
        for _ in range(ATTEMPTS):
            acknowledged = lab.newest(guest.name)
            catch(sight, what)
            lab.kill("primary")
            left[what] = sight()
            lab.start("primary")
            assert recovers(lab, guest, acknowledged) < SOON_S, what
            if left[what]:
                break
    assert left["a backup job runs"], "the job outlived the node that began it"
    lab.wait_for_points(guest.name)
    until(lambda: not backup_runs(lab, guest), "no job is left", 10, 0.01)
    until(lambda: not pending.exists(), "nothing is pending", 10, 0.01)
    # The checkpoints outlived the node: what changed was known, nothing was compared.
    assert counters(lab, guest.name).get("tracking_lost", 0) == tracking
    for point in lab.points(guest.name)[-3:]:
        lab.check_point(guest.name, point.sequence)


def test_a_test_failover_outlives_its_node_and_its_view(lab: LabStory, guest: LabGuest) -> None:
    test = lab.cli("item", "test-failover", guest.name)["result"]["name"]
    run = Path(lab.facts["sites"]["secondary"]["node_state"]) / "run"
    view = next(path for path in run.glob("v*.pid"))
    served = processes.find(view)
    assert served is not None
    with guest.console("secondary", test) as console:
        console.wait_for("SS-FIRST|SS-AT", 60)
        lab.kill("secondary")
        assert processes.find(view) == served
        console.wait_for("SS-AT", 30, after=len(console.lines))
        os.kill(served.pid, signal.SIGKILL)
        lab.start("secondary")
        again = until(lambda: processes.find(view), "the view runs again", 30)
        assert again != served
        domain = lab.connection("secondary").lookupByName(test)
        until(lambda: domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING, "the machine was resumed", 30)
        console.wait_for("SS-AT", 30, after=len(console.lines))
    lab.wait_for_points(guest.name)
    lab.cli("item", "cleanup-test", guest.name)
    assert sorted(path.name for path in run.glob("v*")) == []
    with pytest.raises(libvirt.libvirtError):
        lab.connection("secondary").lookupByName(test)
    replicas = lab.journal(guest.name).parent.parent / "replicas"
    assert not any_file(replicas, "**/*.qcow2")


def test_qemu_dies_and_compare_ships_only_what_differs(lab: LabStory, guest: LabGuest) -> None:
    kept = [point.sequence for point in lab.points(guest.name)[-2:]]
    before = {sequence: lab.fingerprint(guest.name, sequence) for sequence in kept}
    lost = counters(lab, guest.name).get("tracking_lost", 0)
    last = lab.newest(guest.name)
    os.kill(guest.qemu_pid("primary"), signal.SIGKILL)
    until(lambda: not guest.active("primary"), "libvirt noticed", 10)

    # While it is off: replicated from its images, by compare, and only the difference.
    until(lambda: counters(lab, guest.name).get("tracking_lost", 0) == lost + 1, "tracking lost was noticed")
    off = lab.wait_for_points(guest.name, 2)
    check_resyncs(lab, guest, last, off)
    assert lab.check_point(guest.name, off).last >= lab.check_point(guest.name, last).last

    # Started again: replicated on from the running machine. Judged from here on: the node tells of its last dozen cycles.
    off = lab.newest(guest.name)
    guest.start().close()
    running = lab.wait_for_points(guest.name, 2)
    check_resyncs(lab, guest, off, running)
    disks = lab.extract(guest.name, running)
    for disk in disks:
        found = check_filesystem(disk)
        assert found.ok, found.problems
    assert lab.check_point(guest.name, running).ok

    # Older points did not move.
    for sequence in kept:
        assert lab.fingerprint(guest.name, sequence) == before[sequence], f"point {sequence} changed"


def check_resyncs(lab: LabStory, guest: LabGuest, after: int, upto: int) -> None:
    """Each cycle in between shipped exactly the blocks in which its point differs from the one before."""
    cycles = until(
        lambda: (
            (found := {cycle["sequence"]: cycle for cycle in lab.source(guest.name)["cycles"]}).keys()
            >= {upto}
            and found
        ),
        "the cycle's report",
    )
    old = lab.extract(guest.name, after)
    for sequence in range(after + 1, upto + 1):
        new = lab.extract(guest.name, sequence)
        cycle, differing = cycles[sequence], differing_blocks(old, new) * 4096
        assert cycle["bytes_changed"] == differing, (sequence, cycle)
        assert cycle["bytes_shipped"] <= differing * 1.05 + 64 * 1024, (sequence, cycle)
        for disk in old:
            disk.unlink()
        old = new
