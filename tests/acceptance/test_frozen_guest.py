"""Application-consistent points of a guest with an agent, and a node that dies while it holds the guest frozen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt_qemu
import pytest

from secondsite.lab.filesystem import check_filesystem
from secondsite.model.manifest import Consistency
from support.lab_story import LabGuest, LabStory, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

ATTEMPTS = 5
"""To kill the node within the tenth of a second that a freeze lasts."""


@pytest.fixture
def guest(lab: LabStory) -> Iterator[LabGuest]:
    guest = lab.guest("frozen", rate=60, churn=4, agent=True)
    guest.start().close()
    until(lambda: "state='connected'" in guest.domain("primary").XMLDesc(), "the agent connects")
    lab.protect(guest.name)
    lab.policy(app_consistent_hours=1)
    yield guest
    lab.policy(app_consistent_hours=0)
    lab.give_up(guest)


def status(guest: LabGuest) -> str:
    answer = libvirt_qemu.qemuAgentCommand(
        guest.domain("primary"), '{"execute":"guest-fsfreeze-status"}', 5, 0
    )
    return str(json.loads(answer)["return"])


def folder(lab: LabStory, guest: LabGuest) -> Path:
    return Path(lab.facts["sites"]["primary"]["node_state"]) / "items" / lab.item(guest.name)["id"]


def killed_amid_a_freeze(lab: LabStory, guest: LabGuest) -> bool:
    """Start the node anew with a freeze due, and kill it when that begins; say whether it was in time."""
    marker = folder(lab, guest) / "frozen"
    lab.kill("primary")
    (folder(lab, guest) / "app-consistent.json").unlink()
    lab.start("primary")
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < deadline, "no freeze begins"
        time.sleep(0.0005)
    lab.kill("primary")
    if marker.exists():
        return True
    lab.start("primary")  # too late, the guest is thawed: the next try finds the node running
    return False


def test_a_frozen_guest_gives_clean_file_systems_and_is_thawed_when_its_node_dies(
    lab: LabStory, guest: LabGuest
) -> None:
    consistent = until(
        lambda: [p for p in lab.points(guest.name) if p.consistency is Consistency.APPLICATION],
        "an application-consistent point",
        60,
    )[0]
    for disk in lab.extract(guest.name, consistent.sequence):
        checked = check_filesystem(disk)
        assert checked.problems == ()
        assert not checked.needed_recovery
    lab.check_point(guest.name, consistent.sequence)
    shown = until(
        lambda: [
            point
            for point in lab.api.get(f"/items/{guest.name}/points")
            if point["sequence"] == consistent.sequence
        ],
        "the point in the service",
    )
    assert shown[0]["consistency"] == "application"

    assert any(killed_amid_a_freeze(lab, guest) for _ in range(ATTEMPTS))
    marker = folder(lab, guest) / "frozen"
    lab.start("primary")
    until(lambda: not marker.exists(), "thawed", 20)
    assert status(guest) == "thawed"
    lab.check_point(guest.name, lab.wait_for_points(guest.name, 2))
