"""The worst day: the first site is gone, the second goes on from any point, and the way back keeps what anybody wrote.

Judged by the guest's own records: what comes up is exactly a point, both disks of one moment, and goes on with the very
next record.
"""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.records import check_records
from secondsite.model.units import BLOCK, MIB
from support.lab_story import LabGuest, LabStory, differing_blocks, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]


def test_an_unplanned_failover_there_and_everything_back(lab: LabStory) -> None:
    guest = lab.guest("worst-day", size=64 * MIB, record_area=2 * MIB)
    guest.start().close()
    lab.protect(guest.name)
    older = lab.wait_for_points(guest.name)
    lab.wait_for_points(guest.name)

    # Both sites are alive: the old side steps down first; then somebody thinks better of it.
    job = lab.cli("item", "unplanned-failover", guest.name, "--shutdown-source", "no")
    assert not guest.active("primary")
    last = comes_up(lab, guest, job)
    lab.cli("item", "cancel", guest.name)
    assert not guest.active("secondary")
    goes_on_with_the_delta(lab, guest, last)

    # The first site is gone. Nothing of it is needed, for the last point and for an older one.
    lab.lose_site("primary")
    written = check_records(home_disks(lab, guest)).last
    job = lab.cli("item", "unplanned-failover", guest.name)
    assert "does not answer" in job["result"]["information"]
    latest = comes_up(lab, guest, job)
    assert latest == lab.newest(guest.name)
    for point in (older, latest):
        job = lab.cli("item", "change-point", guest.name, "--point", str(point))
        assert comes_up(lab, guest, job) == point
    lab.cli("item", "commit", guest.name)

    # It is back: it does not run its copy, steps down, and what only it had written is kept.
    lab.site_back("primary")
    until(lambda: not lab.item(guest.name)["standing"], "the old side stepped down", 90)
    assert not guest.active("primary")
    lab.cli("item", "reverse", guest.name, timeout_s=240)
    kept = next(row for row in lab.api.get(f"/items/{guest.name}/points") if row["kind"] == "diverged")
    assert lab.check_point(guest.name, kept["sequence"], "primary").last == written
    lab.check_point(guest.name, lab.wait_for_points(guest.name, site="primary"), "primary")

    # And home as planned: no record is lost, once somebody has given up what the reversal kept.
    lab.cli("item", "failover", guest.name, "--planned")
    last_there = check_records(guest.disks("secondary"))
    assert last_there.ok, last_there.problems
    with guest.console("primary") as console:
        assert console.first_record(90) == last_there.last + 1
    lab.cli("point", "drop-diverged", guest.name)
    until(lambda: not lab.item(guest.name)["standing"], "the kept point was given up")
    lab.cli("item", "commit", guest.name)
    lab.give_up(guest)


def comes_up(lab: LabStory, guest: LabGuest, job: Any) -> int:
    """The guest went on right after the point that the job names, which is of one moment and clean; return the point."""
    point = int(job["result"]["point"]["sequence"])
    with guest.console("secondary") as console:
        first = console.first_record(90)
    disks = lab.extract(guest.name, point)
    found, system = check_records(disks), check_filesystem(disks[0])
    assert found.ok, found.problems
    assert system.ok, system.problems
    assert first == found.last + 1
    for disk in disks:
        disk.unlink()
    return point


def goes_on_with_the_delta(lab: LabStory, guest: LabGuest, last: int) -> None:
    """Replication resumed at the old place, and its first cycle shipped what differs and no more."""
    next_one = lab.wait_for_points(guest.name)
    assert guest.active("primary")
    before, after = lab.extract(guest.name, last), lab.extract(guest.name, last + 1)
    differs = differing_blocks(before, after) * BLOCK
    assert check_records(after).ok
    cycles = until(lambda: (lab.source(guest.name) or {}).get("cycles"), "the cycle's figures")
    cycle = next(cycle for cycle in cycles if cycle["sequence"] == last + 1)
    assert cycle["bytes_shipped"] <= 1.1 * differs + MIB, (next_one, cycle, differs)
    for disk in (*before, *after):
        disk.unlink()


def home_disks(lab: LabStory, guest: LabGuest) -> list[Any]:
    """The images of a guest whose hypervisor is down."""
    return sorted(lab.hypervisor("primary").storage.glob(f"{guest.name}*"))
