"""One lab for all stories of a test process: each uses guests of its own and leaves every part running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.lab_story import LabStory, running_lab


@pytest.fixture(scope="session")
def session_lab() -> Iterator[LabStory]:
    with running_lab() as lab:
        yield lab


@pytest.fixture
def lab(session_lab: LabStory) -> Iterator[LabStory]:
    """The lab, whole again after a story that failed midway."""
    yield session_lab
    session_lab.restart_missing()
