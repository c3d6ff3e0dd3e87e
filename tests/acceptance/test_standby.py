"""Two services, one PostgreSQL: the active one is killed in the middle of planned failovers, and the standby ends them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.lab_story import until
from support.role_changes import PREPARE, START, STEP_DOWN, check_moved, result_file, takes_over, task_runs
from support.standby_lab import StandbyLab, standby_lab

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

LIMIT_S = 30.0
ONCE = [("source.prepare", "done"), ("target.failover", "done"), ("source.demote", "done")]


@pytest.fixture(scope="module")
def pair() -> Iterator[StandbyLab]:
    with standby_lab() as found:
        yield found


def finished_after_kill(pair: StandbyLab, command: subprocess.Popen[str], killed: float) -> dict[str, Any]:
    """The job, whose command followed it over to the other service: done within the limit, each order given once."""
    job: dict[str, Any] = pair.story.finished(command)
    took = time.monotonic() - killed
    assert job["state"] == "Succeeded"
    shutdown_s = job["result"]["task_seconds"][PREPARE]
    print(f"done {took:.1f} s after the kill; the guest's shutdown took {shutdown_s:.1f} s")
    assert took - shutdown_s <= LIMIT_S
    assert pair.orders(job["id"]) == ONCE
    return job


def test_a_standby_ends_planned_failovers_whose_service_was_killed(pair: StandbyLab) -> None:
    lab = pair.story
    guest = lab.guest("standby")
    guest.start().close()
    lab.protect(guest.name)

    # There: killed while the source shuts down and ships.
    command = lab.start_cli("item", "failover", guest.name, "--planned")
    until(lambda: task_runs(lab, guest.name, PREPARE), "the source prepares", every_s=0.02)
    killed = time.monotonic()
    pair.kill_active()
    finished_after_kill(pair, command, killed)
    check_moved(lab, guest, "primary", "secondary", 2)
    pair.change_places()
    lab.cli("item", "commit", guest.name)
    lab.cli("item", "reverse", guest.name)

    # Back: killed when the replica runs and nobody could be told.
    folder = Path(lab.facts["sites"]["primary"]["node_state"]) / "commands"
    known = set(folder.glob("*.json"))
    command = lab.start_cli("item", "failover", guest.name, "--planned")
    until(lambda: takes_over(lab, "primary", guest.name), "the replica starts", every_s=0.02)
    pair.active.signal(signal.SIGSTOP)
    until(lambda: result_file(lab, "primary", "target.failover", known), "the replica runs", every_s=0.02)
    killed = time.monotonic()
    pair.kill_active()
    finished_after_kill(pair, command, killed)
    check_moved(lab, guest, "secondary", "primary", 3)
    pair.change_places()
    lab.cli("item", "commit", guest.name)
    lab.cli("item", "reverse", guest.name)

    # There again: killed after the takeover, while the old side has not stepped down.
    command = lab.start_cli("item", "failover", guest.name, "--planned")
    until(lambda: task_runs(lab, guest.name, START), "the replica starts", every_s=0.02)
    lab.signal("primary", signal.SIGSTOP)
    until(lambda: task_runs(lab, guest.name, STEP_DOWN), "the old side is told", every_s=0.02)
    killed = time.monotonic()
    pair.kill_active()
    lab.signal("primary", signal.SIGCONT)
    finished_after_kill(pair, command, killed)
    check_moved(lab, guest, "primary", "secondary", 4)
    pair.change_places()
    lab.cli("item", "commit", guest.name)
    lab.cli("item", "reverse", guest.name)
    lab.check_point(guest.name, lab.wait_for_points(guest.name, site="primary"), "primary")
    lab.give_up(guest)


def test_a_standby_touches_nothing_while_it_waits(pair: StandbyLab) -> None:
    assert pair.standby.waits
    assert not (pair.standby.data / "service.json").exists()
    pair.standby.end()  # it is told to, and does
    assert not pair.standby.waits
    assert pair.story.api.get("/vault")["name"] == "lab"
    pair.standby.start_as_standby()
