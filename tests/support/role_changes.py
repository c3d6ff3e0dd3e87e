"""What stories of failovers look at: where a job is, what a node has answered, and that exactly one side went on."""

from __future__ import annotations

import json
from pathlib import Path

from secondsite.lab.records import check_records
from support.lab_story import LabGuest, LabStory, until

PREPARE = "shut down and ship the last changes"
START = "start the replica"
STEP_DOWN = "old side steps down"


def task_runs(lab: LabStory, name: str, task: str) -> bool:
    """Whether this task of the item's active job is under way."""
    job = lab.item(name)["active_job"]
    if job is None:
        return False
    tasks = lab.api.get(f"/jobs/{job['id']}")["tasks"]
    return any(entry["name"] == task and entry["state"] == "InProgress" for entry in tasks)


def takes_over(lab: LabStory, site: str, name: str) -> bool:
    """Whether the node at the site has begun to start the replica: it has its order then, which the task's start does not say."""
    folder = Path(lab.facts["sites"][site]["node_state"]) / "items" / lab.item(name)["id"]
    return bool(json.loads((folder / "record.json").read_text())["role"] == "active")


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
