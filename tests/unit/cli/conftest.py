"""Fixtures of the commands' unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.cli import following
from support.cli_world import Cli
from support.service_world import World


@pytest.fixture(autouse=True)
def _nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees who runs it, or waits between two questions."""
    for name in ("CONFIG", "URL", "TOKEN", "CA"):
        monkeypatch.delenv(f"SECONDSITE_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(following, "POLL_S", 0.0)
    monkeypatch.setattr(following, "AWAY_POLL_S", 0.0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two sites, nothing protected."""
    found = World(tmp_path)
    found.two_sites()
    yield found
    found.close()


@pytest.fixture
def cli(world: World) -> Cli:
    """A Contributor's command on two sites with nothing protected."""
    return Cli.of(world)


@pytest.fixture
def protected(cli: Cli) -> Cli:
    """A Contributor's command; web-1 is protected."""
    cli.protected()
    return cli
