"""The service dies in the middle of planned failovers. Nobody helps; it only runs again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.lab_story import LabStory, until
from support.role_changes import PREPARE, check_moved, result_file, takes_over, task_runs

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


def test_a_planned_failover_survives_the_service(lab: LabStory) -> None:
    guest = lab.guest("killed-service")
    guest.start().close()
    lab.protect(guest.name)

    # There: the service dies while the source shuts down and ships.
    command = lab.start_cli("item", "failover", guest.name, "--planned")
    until(lambda: task_runs(lab, guest.name, PREPARE), "the source prepares", every_s=0.02)
    lab.kill("service")
    lab.start("service")
    assert lab.finished(command)["state"] == "Succeeded"
    check_moved(lab, guest, "primary", "secondary", 2)
    lab.cli("item", "commit", guest.name)
    lab.cli("item", "reverse", guest.name)

    # Back: it dies while the replica starts, and again when the node has done it but could not tell.
    folder = Path(lab.facts["sites"]["primary"]["node_state"]) / "commands"
    known = set(folder.glob("*.json"))
    command = lab.start_cli("item", "failover", guest.name, "--planned")
    until(lambda: takes_over(lab, "primary", guest.name), "the replica starts", every_s=0.02)
    lab.signal("service", signal.SIGSTOP)
    until(lambda: result_file(lab, "primary", "target.failover", known), "the replica runs", every_s=0.02)
    lab.kill("service")
    assert guest.active("primary"), "it runs before the service knows"
    lab.start("service")
    lab.kill("service")
    lab.start("service")
    assert lab.finished(command)["state"] == "Succeeded"
    check_moved(lab, guest, "secondary", "primary", 3)
    lab.cli("item", "commit", guest.name)
    lab.cli("item", "reverse", guest.name)
    lab.check_point(guest.name, lab.wait_for_points(guest.name))
    lab.give_up(guest)
