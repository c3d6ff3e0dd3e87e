"""One lab for all stories of a test process: each uses guests of its own and leaves every part running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.lab_story import LabStory, running_lab

LONGEST = (
    "test_every_operation",
    "test_demo",
    "test_every_point",
    "test_nodes_killed",
    "test_standby",
    "test_unplanned",
    "test_groups",
    "test_tutorial",
    "test_kill_matrix_sample",
    "test_copy_frequency",
    "test_service_killed",
    "test_thin_disks",
    "test_frozen_guest",
    "test_role_swaps",
    "test_policy_change",
)
"""These begin first, so that no long story runs alone at the end (it needs xdist's --no-loadscope-reorder)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; within a file as they stand."""
    last = len(LONGEST)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else last)


@pytest.fixture(scope="session")
def session_lab() -> Iterator[LabStory]:
    with running_lab() as lab:
        yield lab


@pytest.fixture
def lab(session_lab: LabStory) -> Iterator[LabStory]:
    """The lab, whole again after a story that failed midway."""
    yield session_lab
    session_lab.restart_missing()
