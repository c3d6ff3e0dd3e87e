"""The service dies in the middle of planned failovers. Nobody helps; it only runs again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from secondsite.lab.records import check_records
from support.lab_story import LabGuest, LabStory, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

PREPARE, START = "shut down and ship the last changes", "start the replica"


def task_runs(lab: LabStory, name: str, task: str) -> bool:
    job = lab.item(name)["active_job"]
    if job is None:
        return False
    tasks = lab.api.get(f"/jobs/{job['id']}")["tasks"]
    return any(entry["name"] == task and entry["state"] == "InProgress" for entry in tasks)


def result_file(lab: LabStory, site: str, kind: str, known: set[Path]) -> Path | None:
    """The result of a command that a node ended, beside those that were known."""
    folder = Path(lab.facts["sites"][site]["node_state"]) / "commands"
    return next((path for path in folder.glob(f"*{kind}*.json") if path not in known), None)


def check_moved(lab: LabStory, guest: LabGuest, old: str, new: str, epoch: int) -> None:
    """Exactly one side runs the guest, it went on with the very next record, and all facts agree."""
    assert guest.active(new)
    assert not guest.active(old)
    left = check_records(guest.disks(old))
    assert left.ok, left.problems
    with guest.console(new) as console:
        assert console.first_record(60) == left.last + 1, "records were lost"
    item = lab.item(guest.name)
    assert (item["state"], item["epoch"]) == ("commit-pending", epoch)
    assert item["active_side"] == {"primary": "primary", "secondary": "recovery"}[new]
    assert item["active_job"] is None
    until(lambda: lab.source(guest.name)["role"] in {"standby", "active"}, "the old side stepped down")


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
    until(lambda: task_runs(lab, guest.name, START), "the replica starts", every_s=0.02)
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
    lab.cli("item", "disable", guest.name)
    guest.domain("primary").destroy()
