"""The copy frequency of 5 seconds is held while the guest writes. `bench/rpo.py` measures it over 60 cycles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.lab_story import LabStory

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

BENCH = Path(__file__).parents[2] / "bench" / "rpo.py"


def test_the_newest_point_is_young_at_any_time(lab: LabStory) -> None:
    guest = lab.guest("young", rate=100, churn=4)
    guest.start().close()
    lab.protect(guest.name)
    lab.wait_for_points(guest.name)
    journal = str(lab.journal(guest.name))
    done = subprocess.run(
        # The limit is no figure to reach: cycles that wait for a retry or are skipped would be far beyond it.
        [sys.executable, str(BENCH), "--journal", journal, "--cycles", "12", "--limit", "30", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    print(done.stdout, done.stderr)
    figures = json.loads(done.stdout)
    assert done.returncode == 0, figures
    assert figures["cycles"] >= 12
    lab.give_up(guest)
