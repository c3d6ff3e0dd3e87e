"""The crash-point sweep of the journal, as far as it fits a test run; tools/crash_sweep.py does all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.crash_bugs import BUGS, planted
from support.crash_lives import DICE, KILLED, RECOVERING, WORKLOADS
from support.crash_sweep import Sweep, Workload

pytestmark = pytest.mark.fault

BRIEF = (
    "replicate",
    "apply received",
    "first seal with files",
    "seal",
    "grow within a block",
    "fold one point",
    "thin zeros",
    "pin and unpin",
    "adopt",
    "drop a diverged point",
    "delete with images",
    "extract",
    "repair a damaged log",
    "killed: seal",
    "killed: raise the epoch",
)
QUICK_BUGS = (
    "data-not-synced",
    "log-named-later",
    "rename-before-fsync",
    "folder-not-synced",
    "answered-before-fsync",
    "no-switch-before-the-fold",
    "fold-done-before-it-is",
    "points-gone-before-the-merged-one",
    "first-switch-before-its-manifest",
    "cells-not-unknown",
    "grown-before-it-is-said",
    "deleted-in-place",
    "tables-gone-before-the-journal",
    "extract-not-synced",
    "pin-not-durable",
    "epoch-not-durable",
)
LIMIT = 16


@pytest.mark.parametrize("name", BRIEF)
def test_every_state_after_a_power_cut_is_a_sound_journal(tmp_path: Path, name: str) -> None:
    outcome = Sweep(tmp_path, limit=LIMIT).workload(_workload(name))
    assert outcome.states > 5
    assert outcome.wrong == []


@pytest.mark.parametrize("name", QUICK_BUGS)
def test_a_planted_bug_is_seen(tmp_path: Path, name: str) -> None:
    bug = next(bug for bug in BUGS if bug.name == name)
    with planted(bug):
        outcome = Sweep(tmp_path, limit=LIMIT, stop_at=1).workload(_workload(bug.workloads[0]))
    assert outcome.wrong


def test_there_are_fifty_workloads_and_every_bug_names_some_of_them() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(names) == len(set(names)) >= 50
    assert all({*bug.workloads} <= {*names} for bug in BUGS)
    assert len(KILLED) > 5
    assert len(RECOVERING) > 5
    assert len(DICE) > 5
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def _workload(name: str) -> Workload:
    return next(workload for workload in WORKLOADS if workload.name == name)
