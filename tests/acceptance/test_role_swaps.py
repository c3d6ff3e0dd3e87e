"""Planned failovers back and forth under a writer: a bounded part of `tools/role_swaps.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.model.units import MIB
from support.lab_story import LabStory
from support.role_swaps import RoleSwaps, prepared

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]


def test_nothing_is_lost_and_only_what_was_changed_is_shipped(lab: LabStory, tmp_path: Path) -> None:
    try:
        swaps = RoleSwaps(lab, prepared(lab, "swapped", size=48 * MIB, rate=100), tmp_path)
        assert [swaps.swap().there for _ in range(2)] == ["secondary", "primary"]
    finally:
        lab.policy(compression=True)
    lab.cli("item", "disable", "swapped")
    lab.connection("primary").lookupByName("swapped").destroy()
