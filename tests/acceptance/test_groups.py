"""Two machines that work together fail over together: no effect is ever there without its cause.

The second guest writes record n only after it was told that the first one's record n is stable; what comes up at the other
site is judged by what both wrote.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest

from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.records import check_records
from support.lab_story import LabGuest, LabStory, until
from support.relay import Relay, last_done

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

CAUSE, EFFECT = "shop-db", "shop-web"


def test_a_group_fails_over_to_its_latest_and_to_an_older_point_and_back(lab: LabStory) -> None:
    # Slow, so that the second one can catch up on a machine where everybody gets little.
    cause = lab.guest(CAUSE, rate=30, say=True)
    effect = lab.guest(EFFECT, rate=2000, say=True, follow=True)
    with ExitStack() as stack:
        consoles = [stack.enter_context(guest.start()) for guest in (cause, effect)]
        with Relay(*consoles):
            for name in (CAUSE, EFFECT):
                lab.protect(name)
            until(
                lambda: last_done(consoles[0]) - last_done(consoles[1]) < 20, "the second guest follows", 120
            )
            made = lab.cli("group", "create", "shop", CAUSE, EFFECT)
            assert [member["name"] for member in made["members"]] == [CAUSE, EFFECT]
            points = until(lambda: at_least(lab, 3), "three common points", 180)
            # The source's node reports for itself, a little before or after the target's.
            cuts = until(lambda: reported(lab, 3), "the source's report", 60)
            assert cuts["pause_s"] < 2
            lab.lose_site("primary")

    # Nothing of the first site is needed. To the latest, to an older one, and to the latest again.
    begun = lab.cli("group", "unplanned-failover", "shop", timeout_s=300)
    latest = begun["point"]["number"]
    assert latest >= points[0]["number"]
    behind = [come_up_together(lab, cause, effect, begun)]
    older = points[-1]["number"]
    for number in (older, latest):
        begun = lab.cli("group", "change-point", "shop", "--point", str(number), timeout_s=300)
        assert begun["point"]["number"] == number
        behind.append(come_up_together(lab, cause, effect, begun))
    print(f"records that the effects are behind their causes: {behind}")

    # Somebody thinks better of it: the old side goes on, and its points are common again.
    lab.site_back("primary")
    lab.cli("group", "cancel", "shop", "--start", timeout_s=300)
    for guest in (cause, effect):
        until(lambda guest=guest: guest.active("primary"), "the old side runs", 120)  # type: ignore[misc]
        assert not guest.active("secondary")
    again = until(lambda: [row for row in at_least(lab, 1) if row["number"] > latest], "a common point", 180)
    judge(lab, again[0]["sequences"])
    lab.cli("group", "delete", "shop")
    for guest in (cause, effect):
        lab.give_up(guest)


def at_least(lab: LabStory, count: int) -> list[Any]:
    rows: list[Any] = lab.api.get("/groups/shop/points")
    return rows if len(rows) >= count else []


def reported(lab: LabStory, count: int) -> Any:
    shown = lab.api.get("/groups/shop")
    assert shown["together"]
    return shown["cuts"] if shown["cuts"]["cuts"] >= count else None


def judge(lab: LabStory, sequences: dict[str, int]) -> list[int]:
    """Each guest's records are those of one moment, its file systems are clean; return their last records."""
    last = []
    for name in (CAUSE, EFFECT):
        disks = lab.extract(name, sequences[name])
        found = check_records(disks)
        assert found.ok, found.problems
        for disk in disks:
            system = check_filesystem(disk)
            assert system.ok, system.problems
            disk.unlink()
        last.append(found.last)
    assert last[1] <= last[0], "an effect without its cause"
    return last


def come_up_together(lab: LabStory, cause: LabGuest, effect: LabGuest, begun: Any) -> int:
    """Both went on right after their own points of the cut that the operation names; return by how much one is behind."""
    assert {job["state"] for job in begun["jobs"]} == {"Succeeded"}
    last = judge(lab, begun["point"]["sequences"])
    with cause.console("secondary") as first, effect.console("secondary") as second:
        began = first.first_record(120)
        assert began == last[0] + 1
        deadline = time.monotonic() + 120
        while not any("SS-FIRST" in line for line in second.lines):
            assert time.monotonic() < deadline, second.lines[-10:]
            second.send(f"{began}\n")  # it may still be booting, and hear nothing
            time.sleep(0.5)
        assert second.first_record(30) == last[1] + 1
    return last[0] - last[1]
