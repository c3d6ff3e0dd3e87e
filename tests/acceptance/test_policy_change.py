"""A policy is changed while its machines replicate: both nodes follow, and nothing is restarted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.lab_story import LabStory, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

PARTS = ("service", "primary", "secondary")
WINDOW = {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "from": "00:00", "to": "24:00"}


def held(lab: LabStory, site: str, name: str) -> dict[str, Any]:
    """The policy as the node of a site keeps it for the item."""
    folder = Path(lab.facts["sites"][site]["node_state"]) / "items" / lab.item(name)["id"]
    policy: dict[str, Any] = json.loads((folder / "record.json").read_text())["policy"]
    return policy


def test_a_changed_policy_reaches_its_items_without_restarting_anything(lab: LabStory) -> None:
    guest = lab.guest("policy-change")
    guest.start().close()
    lab.protect(guest.name)
    usual = lab.api.get(f"/policies/{lab.facts['policy']}")
    pids = {part: lab.pid(part) for part in PARTS}
    changes = {
        "keep_all_hours": 1.0,
        "keep_hourly_hours": 12.0,
        "retention_points": 5000,
        "compression": False,
        "bandwidth_schedule": [{**WINDOW, "limit": 64 << 20}],
        "resync_window": "manual",
    }
    try:
        lab.policy(**changes)
        for site in ("primary", "secondary"):
            until(lambda site=site: changes.items() <= held(lab, site, guest.name).items(), f"{site} follows")
        lab.wait_for_points(guest.name, 2)

        # The window: tracking is lost, and nothing is compared until the policy allows it.
        os.kill(guest.qemu_pid("primary"), signal.SIGKILL)
        until(lambda: not guest.active("primary"), "libvirt noticed", 10)
        until(lambda: lab.source(guest.name)["phase"] == "resync-required", "a resync is required", 40)
        before = lab.newest(guest.name)
        # A report's counters are read a little before its phase.
        until(lambda: lab.source(guest.name)["counters"].get("tracking_lost") == 1, "tracking was lost once")
        guest.start().close()
        assert lab.newest(guest.name) == before
        lab.policy(resync_window="always")
        until(lambda: lab.newest(guest.name) > before, "compared at once", 60)
        counters = until(
            lambda: (found := lab.source(guest.name)["counters"]).get("resyncs") == 1 and found, "the report"
        )
        assert counters["tracking_lost"] == 1
        lab.check_point(guest.name, lab.newest(guest.name))

        # The frequency: a change wakes the source, and from then on the new interval holds. What is there is read
        # before the policy is changed: the woken cycle may be over before the change is seen here.
        before = lab.newest(guest.name)
        lab.policy(copy_frequency_s=900)
        until(lambda: held(lab, "primary", guest.name)["copy_frequency_s"] == 900, "the source follows")
        until(lambda: lab.newest(guest.name) > before, "woken for one cycle", 60)
        before = lab.newest(guest.name)
        lab.policy(copy_frequency_s=5)
        until(lambda: lab.newest(guest.name) >= before + 3, "woken, and the shorter interval", 60)
        assert {part: lab.pid(part) for part in PARTS} == pids
    finally:
        cleared = {"keep_all_hours": 0, "keep_hourly_hours": 0, "bandwidth_schedule": []}
        kept = ("copy_frequency_s", "retention_points", "compression", "resync_window")
        lab.policy(**cleared, **{key: usual[key] for key in kept})
    lab.give_up(guest)
