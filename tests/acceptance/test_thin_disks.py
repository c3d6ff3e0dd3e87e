"""Time follows what a disk holds, not how large it could become."""

from __future__ import annotations

import time

import pytest

from support.lab_story import LabStory, running_lab

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

GIB = 1 << 30
PROPORTIONAL_S = 90.0
"""Reading 499 GiB of zeros takes minutes on any machine (250 s at 2 GB/s); a busy machine's noise stays far below this."""


def figures(lab: LabStory, name: str, size: int) -> dict[str, float]:
    """Protect, test and fail over a guest with one disk of this size; return seconds for each."""
    guest = lab.guest(name, count=1, size=size)
    guest.start().close()
    lab.known(name)
    found: dict[str, float] = {}

    def timed(what: str, *command: str) -> None:
        began = time.monotonic()
        assert lab.cli("item", *command)["state"] == "Succeeded"
        found[what] = round(time.monotonic() - began, 2)

    timed("protect", "protect", name)
    lab.wait_for_points(name)
    timed("test", "test-failover", name)
    with guest.console("secondary", f"{name}-test") as console:
        console.wait_for("SS-FIRST|SS-AT", 60)
    lab.cli("item", "cleanup-test", name)
    timed("failover", "failover", name, "--planned")
    with guest.console("secondary") as console:
        console.wait_for("SS-FIRST|SS-AT", 60)
    return found


def test_500_gib_thin_take_about_as_long_as_1_gib() -> None:
    # A lab of its own: the failed-over machines go on copying what they read from the journal until it ends.
    with running_lab() as lab:
        small = figures(lab, "small", GIB)
        huge = figures(lab, "huge", 500 * GIB)
    print(f"\nseconds for 1 GiB: {small}; for 500 GiB: {huge}")
    for what, seconds in huge.items():
        assert seconds <= small[what] + PROPORTIONAL_S, f"{what}: {seconds} s against {small[what]} s"
