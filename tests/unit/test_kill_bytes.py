"""The kill matrix's own judge of what was sent twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.kill_bytes import KIB, KillBytes
from support.kill_victims import Victim

MIB = 1 << 20
Judged = Callable[..., list[str]]


class Story:
    """A journal at one site, and a wire."""

    def __init__(self, folder: Path) -> None:
        self.sealed = [SimpleNamespace(sequence=1, changed=5 * MIB)]
        self.wire = 5 * MIB
        self._folder = folder
        self._disks = {1: bytes(8 * MIB)}

    def seal(self, size: int, shipped: int) -> None:
        """A point that differs from the last one in so many bytes, and names more if more was shipped for it."""
        sequence = len(self._disks) + 1
        disk = bytes([sequence]) * size + self._disks[sequence - 1][size:]
        self._disks[sequence] = disk
        self.sealed.append(SimpleNamespace(sequence=sequence, changed=shipped))

    def extract(self, name: str, sequence: int, site: str) -> list[Path]:
        path = self._folder / f"{sequence}.raw"
        path.write_bytes(self._disks[sequence])
        return [path]

    def points(self, name: str, site: str) -> list[Any]:
        return list(self.sealed) if site == "secondary" else []

    def total(self) -> int:
        return self.wire


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    return partial(_judged, tmp_path)


def _judged(
    folder: Path, sent: int, changed: list[int], killed: Victim | None, shipped: int | None = None
) -> list[str]:
    story: Any = Story(folder)
    judge = KillBytes(story, SimpleNamespace(name="guest"), story)  # type: ignore[arg-type]
    judge.begin()
    for size in changed:
        story.seal(size, size if shipped is None else shipped)
    story.wire += sent
    judge.end()
    assert list(folder.iterdir()) == []
    return judge.problems(killed)


@pytest.mark.parametrize("killed", [None, Victim.SERVICE, Victim.TARGET])
def test_what_changed_and_some_protocol_is_right(judged: Judged, killed: Victim | None) -> None:
    assert judged(3 * MIB + 100 * KIB, [2 * MIB, MIB], killed) == []


def test_a_killed_node_may_cost_one_cycle_more(judged: Judged) -> None:
    assert judged(5 * MIB, [2 * MIB, MIB], Victim.TARGET) == []
    assert judged(6 * MIB, [2 * MIB, MIB], Victim.TARGET)


@pytest.mark.parametrize("killed", [None, Victim.SERVICE, Victim.VIEW])
def test_who_ships_nothing_costs_nothing(judged: Judged, killed: Victim | None) -> None:
    assert judged(4 * MIB, [2 * MIB, MIB], killed)


def test_what_an_adopted_base_held_before_was_not_sent(judged: Judged) -> None:
    assert judged(MIB, [], None)


def test_what_was_shipped_though_it_did_not_change_is_too_much_whatever_the_point_names(
    judged: Judged,
) -> None:
    assert judged(8 * MIB, [MIB], Victim.SOURCE, shipped=8 * MIB)
    assert judged(2 * MIB, [MIB], Victim.SOURCE, shipped=2 * MIB) == []
