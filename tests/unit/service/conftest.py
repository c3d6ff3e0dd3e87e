"""Fixtures of the service's unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.service_world import World


@pytest.fixture
def empty_world(tmp_path: Path) -> Iterator[World]:
    """A vault and nothing in it."""
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def world(empty_world: World) -> World:
    """Two sites, nothing protected."""
    empty_world.two_sites()
    return empty_world
